"""What ends a job early, and the exit codes a scheduler sees."""

EXIT_OK = 0  # all done
EXIT_FAULT = 1  # a fault of ours, or everything failed alike
EXIT_BAD_REQUEST = 2  # the request is wrong; said before any work starts
EXIT_PARTIAL = 3  # finished, but some shards could not be scored; the healthy ones are committed
EXIT_ATTENTION = 4  # all done, but someone should look: drift, or a model that could not be renewed


class UserError(Exception):
    """The request cannot be carried out as asked.

    The message is one sentence for the user: the thing (file, column, flag), what was found, what was expected, and
    what to do. Raised before any work starts; the job prints it and exits with `EXIT_BAD_REQUEST`.
    """
