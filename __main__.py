"""The door to the command line: ``netcarve`` and ``python -m netcarve``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

CTRL_C = 130  # of a shell: ended by SIGINT; also what typer makes of a KeyboardInterrupt


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage or input, 130 stopped.

    SIGTERM (``kill``, a batch system) and SIGHUP (a terminal that is closed) stop it as Ctrl-C does.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # ignored under nohup
            signal.signal(number, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    What a user can mend ends in one or two lines on stderr, without a traceback. Anything else is a defect
    of ours and is left to Python, whose traceback we want to be sent.
    """
    import typer

    from .cli import app

    try:
        done = app(args=list(arguments) or ["--help"], prog_name="netcarve", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:  # what typer found wrong with the arguments
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "netcarve"
        return _complain(error.format_message(), hint=f"{command} --help", code=2)
    except BrokenPipeError:  # `netcarve front RUN | head`; nothing is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _foreseen(error):
            raise
        theirs = isinstance(error, ValueError)  # what was asked for, not what came in the way
        if detail := getattr(error, "detail", ""):  # the traceback of the user's own code
            print(detail.rstrip(), file=sys.stderr)
        return _complain(_text(error), code=2 if theirs else 1)
    if done == CTRL_C:
        return _complain("interrupted", code=CTRL_C)
    return done if isinstance(done, int) else 0


def _foreseen(error: Exception) -> bool:
    """Raised by our code on purpose (its text is for the user), or by the system; not inside a library."""
    if type(error).__module__.partition(".")[0] == __package__:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raiser = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return isinstance(error, OSError) or (
        isinstance(error, ValueError) and raiser.partition(".")[0] == __package__
    )


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _complain(text: str, *, code: int, hint: str = "") -> int:
    from .commands.terminal import tell

    tell(f"error: {text.strip()}" + (f" (see {hint})" if hint else ""), err=True)
    return code


if __name__ == "__main__":
    main()
