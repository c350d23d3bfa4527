"""THE TABLE: every published objective is one row.

A row says what it `sets` (what makes it itself, and what composes) and what it uses when `alone` (filled in only where
no other row of a combination sets it). `equation` names a place in the paper only where somebody looked it up there.
"""

from collections.abc import Mapping

from holdfast.objectives.table.control import CONTROL_ROWS
from holdfast.objectives.table.policy import POLICY_ROWS
from holdfast.objectives.table.row import Row

TABLE: Mapping[str, Row] = {**POLICY_ROWS, **CONTROL_ROWS}
