"""Where studies lie: addresses of databases and files, and what these raise, in one line and without passwords."""

import contextlib
import logging
import re
import sqlite3
import sys
from urllib.parse import unquote

import optuna
import sqlalchemy.exc
from optuna.storages import journal

from Experiment.errors import PassingError, UserError
from Experiment.paths import home
from Experiment.records import PASSWORD, masked
from Search.journal import WholeLines
from Search.workers import GRACE, HEARTBEAT, retry

log = logging.getLogger("experiment")


class DatabaseError(PassingError):
    """The database refused: it may be down, or another process may be creating the same tables at this moment."""


@contextlib.contextmanager
def database_errors(address):
    """Turn what a database raises when it refuses, goes away or is damaged into an error of one line.

    Raises:
        DatabaseError: In place of what database, driver and Optuna raise; also where Optuna raises something else while
            it handles that (5.0.0 does so when the connection is lost within a trial).
    """
    try:
        yield
    except Exception as error:
        causes, cause = [], error
        while cause and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        refused = [c for c in causes if isinstance(c, (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError))]
        if not refused or isinstance(error, UserError):
            raise
        said = " ".join(without_password(refused[-1], address).split())[:300]
        if any(map(lasts, causes)):
            raise UserError(f"--storage {masked(address)} cannot be written: {said}. What it has recorded is kept.") from None
        raise DatabaseError(
            f"--storage {masked(address)} refuses: {said}. What it has recorded is kept; run again when it is back."
        ) from None


def lasts(error):
    """Whether an error of SQLite stays until somebody does something: the disk is full, or the file may not be written."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)  # the rest says why


def without_password(error, address):
    """What an error of the database says, without the password of the address that led to it."""
    said = str(error).replace(address, masked(address))
    secrets = [found[2] for found in PASSWORD.finditer(address)]
    for secret in {*secrets, *map(unquote, secrets)} - {""}:
        said = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", said)
    return masked(said)


def check_address(address, create):
    """Refuse what cannot be an address of a study, without opening or making anything.

    Args:
        address: As in `open_storage`.
        create: Whether a file may be made; else it must be there.

    Raises:
        UserError: It is no address, or there is no such file.
    """
    if not address.removeprefix("journal:"):
        raise UserError("--storage names nothing: is a variable of the shell unset?")
    if not address.startswith("journal:"):
        try:
            sqlalchemy.make_url(address)
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            said = without_password(error, address)
            raise UserError(f"--storage {masked(address)} cannot be opened: {said}") from None
    file = study_file(address)
    if file is None and sqlalchemy.make_url(address).get_backend_name() == "sqlite":
        raise UserError(f"--storage {address} is a database in memory, which ends with this process: name a file.")
    if file and not create and not file.exists():
        raise UserError(f"there is no study to report, for there is no file {file}: run with --optimize.")


def study_file(address):
    """The file that an address names; None where it names a server, or the memory."""
    if address.startswith("journal:"):
        return home(address.removeprefix("journal:")).resolve()
    try:
        url = sqlalchemy.make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None  # it is no address: who opens it says so
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return home(url.database).absolute()


class Database(optuna.storages.RDBStorage):
    """Optuna's, whose heart goes on beating after a moment in which the database did not answer."""

    def record_heartbeat(self, trial_id):
        try:
            super().record_heartbeat(trial_id)
        except Exception:  # it would end the thread that beats, and after GRACE the trial would count as dead
            log.debug("trial %d: no heartbeat", trial_id, exc_info=True)


def open_storage(address):
    """The storage of `sqlite:///FILE`, `journal:FILE`, `postgresql://...` or any other address of SQLAlchemy.

    Raises:
        UserError: It cannot be opened (`DatabaseError`: perhaps it can be soon).
    """
    if address.startswith("journal:"):
        file = study_file(address)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Symbolic links, which lock on old NFS too, are not for everybody to make on Windows.
        lock = journal.JournalFileOpenLock if sys.platform == "win32" else journal.JournalFileSymlinkLock
        return optuna.storages.JournalStorage(WholeLines(file, lock(str(file))))
    where = address
    if file := study_file(address):
        file.parent.mkdir(parents=True, exist_ok=True)
        where = sqlalchemy.make_url(address).set(database=str(file)).render_as_string()
        where = where.replace("{", "{{").replace("}", "}}")  # Optuna fills in what stands in braces
    try:
        # A server may be started anew within a trial: its old connections are tried before use.
        return Database(
            where,
            engine_kwargs={"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=retry,
        )
    except ImportError as error:
        hint = ' (pip install "psycopg[binary]")' if "psycopg" in str(error) else ""
        raise UserError(f"--storage {masked(address)} needs a package that is not installed: {error}{hint}") from None
    # What a database or its driver raises has no common type but Exception.
    except Exception as error:
        # The general class, which is none of its subclasses: the file is damaged, or no database. It stays so.
        stays = type(error) is sqlalchemy.exc.DatabaseError or lasts(error)
        kind = DatabaseError if isinstance(error, sqlalchemy.exc.DBAPIError) and not stays else UserError
        said = without_password(error, address)
        raise kind(f"--storage {masked(address)} cannot be opened: {said}") from None
