"""Whose drift is it: how much of what engine and trainer are apart comes from which cause."""

from holdfast.audit.judge.attribution.causes import Causes
from holdfast.audit.judge.attribution.shares import AgeClass, Attribution, Share, attribute

__all__ = ["AgeClass", "Attribution", "Causes", "Share", "attribute"]
