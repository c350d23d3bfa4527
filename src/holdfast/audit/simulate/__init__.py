"""Simulated runs, healthy and with planted faults: what the checks are believed on, and what the demo shows.

Two policies known exactly make `Chunk`s; a `Fault` changes them as the real bug would. A new check brings its fault.
"""

from collections.abc import Mapping

from holdfast.audit.simulate.course_faults import COURSE_FAULTS
from holdfast.audit.simulate.credit_faults import CREDIT_FAULTS
from holdfast.audit.simulate.data_faults import DATA_FAULTS
from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.processor_faults import PROCESSOR_FAULTS
from holdfast.audit.simulate.run import clean_run
from holdfast.audit.simulate.text_faults import TEXT_FAULTS
from holdfast.audit.simulate.training_faults import TRAINING_FAULTS

_ALL = (*DATA_FAULTS, *PROCESSOR_FAULTS, *TEXT_FAULTS, *CREDIT_FAULTS, *TRAINING_FAULTS, *COURSE_FAULTS)
FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in _ALL}

__all__ = ["FAULTS", "Fault", "clean_run"]
