"""The one exception that Lepto raises when it cannot go on."""

import errno
import re


class LeptoError(Exception):
    """Something the user can put right stopped the work.

    The message names the thing, the rule, the value and the way out. Callers' mistakes in Python code stay
    ``ValueError`` and ``TypeError``; this is for files, servers, budgets and pipelines.

    Attributes:
        exit_code: What the command line exits with: 1 for a verdict against the model (a budget that is not met, a
            check that failed), 2 for usage or broken input, 3 for a question left undecided.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an operating system's error says that there is no room left, or none for this user or this file."""
    if re.search(rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\)", str(error)):
        return True  # how Rust's libraries say it (safetensors, tokenizers), in exceptions of their own
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # numpy's way to say it; it loses the number.
        or bool(re.fullmatch(r"\d+ requested and \d+ written", str(error)))
    )
