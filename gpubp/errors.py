"""The errors that gpubp raises on purpose. Each names the culprit and the way out.

The command line prints their text without a traceback; anything else is a bug in gpubp.
"""


class GpubpError(Exception):
    """Base class of every error raised on purpose."""


class DeviceError(GpubpError, RuntimeError):
    """A device that was asked for can't be used, or arrays of different devices met in one call."""


class OutOfDeviceMemoryError(DeviceError, MemoryError):
    """A device has not the memory that is asked for."""


class DeviceLostError(DeviceError):
    """A device failed in a way that leaves it of no use to this process: only a new one can compute on it again."""


class ShapeError(GpubpError, ValueError):
    """Arrays or layers whose shapes do not fit each other."""


class SettingError(GpubpError, ValueError):
    """An argument or option outside its range, or a name that does not exist."""


class DataError(GpubpError, ValueError):
    """Examples or targets that can't be trained or predicted on."""


class ModelFileError(GpubpError, ValueError):
    """A file that is not a gpubp model, or one that is damaged."""


class NotReadyError(GpubpError, RuntimeError):
    """Something was used before it had what it needs, such as parameters or statistics."""


class TrainingDivergedError(GpubpError, ArithmeticError):
    """The loss stopped being a finite number."""
