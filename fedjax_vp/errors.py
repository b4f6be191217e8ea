"""The one exception that is a user's to mend: the command line prints it as a line and exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do."""
