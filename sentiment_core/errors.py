"""Define what ends a command early, what it remarks, and the exit codes that a scheduler sees."""

EXIT_OK = 0  # all done
EXIT_FAULT = 1  # a fault of ours, or everything failed alike
EXIT_BAD_REQUEST = 2  # the request is wrong; said before any work starts
EXIT_PARTIAL = 3  # finished, but some shards could not be scored; the healthy ones are committed
EXIT_ATTENTION = 4  # all done, but someone should look: drift, or a model that could not be renewed


class UserError(Exception):
    """A request that cannot be carried out as it was made.

    The message is for the user. It names the thing (file, column, flag), what was found, what was expected, and what to
    do. It is raised before any work starts; a command prints it and exits with `EXIT_BAD_REQUEST`.
    """


class Notice(UserWarning):
    """A sentence that a user should read though all is well; a command prints it on stderr."""
