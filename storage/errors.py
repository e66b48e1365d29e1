"""What this room raises on purpose. The texts tell the next step.

The error family::

    StorageError
    ├── IllegalTransition   a run or a model cannot go there from where it is
    ├── RunBusy             a run is under way; only one at a time
    ├── UnknownRecord       no row has that identifier
    ├── NotSaved            the disk takes nothing: it is full, or fails
    └── Damaged             bytes that do not match their digest
"""

from __future__ import annotations


class StorageError(Exception):
    """Base of what this room raises on purpose. The text tells the next step."""


class IllegalTransition(StorageError):
    """A run or a model was asked to enter a state that its present one does not lead to."""


class RunBusy(StorageError):
    """A run is under way; only one at a time."""


class UnknownRecord(StorageError):
    """No row has that identifier."""


class NotSaved(StorageError):
    """The disk takes nothing: it is full, or fails. Nothing of what was to be written is there."""


class Damaged(StorageError):
    """A picture or a model is no longer what was stored: its bytes do not match their digest."""
