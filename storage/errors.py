"""The errors of the storage package, whose texts name the next step.

The error family::

    StorageError
    ├── IllegalTransition   a run or a model cannot enter that state from its present one
    ├── RunBusy             another run has not ended; only one at a time
    ├── UnknownRecord       no row has that identifier
    ├── NotSaved            the disk is full or failing
    └── Damaged             bytes that do not match their digest
"""

from __future__ import annotations


class StorageError(Exception):
    """Base class of the errors of this package. The text names the next step."""


class IllegalTransition(StorageError):
    """A run or a model was asked to enter a state that its present one does not lead to."""


class RunBusy(StorageError):
    """Another run has not ended; only one may run at a time."""


class CanaryRunning(RunBusy):
    """A canary is being tried, and no run may begin meanwhile."""


class UnknownRecord(StorageError):
    """No row has that identifier."""


class NotSaved(StorageError):
    """The disk is full or failing, and nothing was written."""


class Damaged(StorageError):
    """A picture or a model has changed since it was stored: its bytes do not match their digest."""
