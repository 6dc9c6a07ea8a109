"""The one error that is shown to a person without a traceback.

Whatever a user can cause (a wrong key, a broken file, a diverging run) is raised as `ResurfaceError` with a message that
says what was found, where, what is allowed and what to do. Every other exception is a bug and keeps its traceback.
"""


class ResurfaceError(Exception):
    """What was found, where, what is allowed and what to do about it."""
