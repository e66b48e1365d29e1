"""The errors of the storage package, whose messages say what to do next.

The hierarchy::

    StorageError
    ├── IllegalTransition   a run or a model cannot enter the requested state from its present one
    ├── RunBusy             another run is active; only one may be active at a time
    ├── UnknownRecord       no row has the given identifier
    ├── NotSaved            the disk is full or failing
    └── Damaged             the bytes of a file do not match their digest
"""

from __future__ import annotations


class StorageError(Exception):
    """Base class for the errors of the storage package, whose messages say what to do next."""


class IllegalTransition(StorageError):
    """A run or a model cannot enter the requested state from its present one."""


class RunBusy(StorageError):
    """Another run is active; only one may be active at a time."""


class CanaryRunning(RunBusy):
    """A canary's trial is running; no run may begin until the trial ends."""


class UnknownRecord(StorageError):
    """No row has the given identifier."""


class NotSaved(StorageError):
    """The disk is full or failing, and nothing was written."""


class Damaged(StorageError):
    """A picture or a model has changed since it was stored: its bytes do not match their digest."""
