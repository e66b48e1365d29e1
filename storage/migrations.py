"""The ledger's tables, as migrations that are each applied once, in order, and recorded in the same transaction.

Never edit a migration that has been released: add the next function at the end of this file, however long it gets.
Columns are named after the fields of the records; "update" is an SQL keyword and therefore quoted. Deleting a user
deletes their sessions, exchanges and votes; a picture is kept as long as an exchange shows it or a sender is recorded.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations
from sqlite_utils.db import ForeignKey

from storage.errors import StorageError

migrations = Migrations("thumbtune")


def migrate(database: Database, known: Migrations = migrations) -> None:
    """Apply every pending migration of `known`, each in its own transaction with its record.

    Two processes may call this at the same time: the second waits and finds nothing to do. Raises `StorageError`,
    having changed nothing, for a ledger of a newer release.
    """
    while True:
        database.execute("BEGIN IMMEDIATE")
        try:
            names = [each.name for each in known.pending(database)]
            refuse_newer(database, known)
            if names:
                known.apply(database, stop_before=names[1:2])
        except BaseException:
            database.rollback()
            raise
        database.commit()
        if len(names) <= 1:
            return


def refuse_newer(database: Database, known: Migrations = migrations) -> None:
    """Raise `StorageError` if a newer release has migrated the ledger further."""
    applied = [each.name for each in known.applied(database)]
    ours = {each.name for each in known._migrations}  # the library offers no public list of all of them
    strange = [name for name in applied if name not in ours]
    if strange:
        raise StorageError(
            f"This ledger was written by a newer version of thumbtune (it has the migration {strange[-1]}, unknown"
            " here): start that version or a later one. Nothing has been changed."
        )


def _table(  # noqa: PLR0913 the options of a table
    database: Database,
    name: str,
    columns: dict[str, type],
    *,
    key: str | tuple[str, ...] = "id",
    defaults: dict[str, object] | None = None,
    nullable: tuple[str, ...] = (),
    refers: dict[str, tuple[str, str, str]] | None = None,
    indexes: tuple[tuple[str, ...], ...] = (),
) -> None:
    """Create a strict table whose columns are NOT NULL unless listed in `nullable`.

    `refers` maps a column to (table, column, what happens when that row is deleted).
    """
    keys = (key,) if isinstance(key, str) else key
    table = database.table(name).create(
        columns,
        pk=key,
        not_null=[
            column for column in columns if column not in nullable and (keys != (column,) or columns[column] is str)
        ],
        defaults=defaults,
        foreign_keys=[
            ForeignKey(name, column, other, other_column, on_delete=action)
            for column, (other, other_column, action) in (refers or {}).items()
        ],
        strict=True,
    )
    for index in indexes:
        table.create_index(index)


@migrations()
def m001_people(database: Database) -> None:
    """Users, chats and the sessions (conversations) between them."""
    _table(
        database,
        "users",
        {"id": int, "name": str, "client_language": str, "language": str, "created": float},
        defaults={"name": ""},
        nullable=("client_language", "language"),
    )
    _table(
        database,
        "chats",
        {"id": int, "kind": str, "title": str, "created": float},
        defaults={"kind": "private", "title": ""},
    )
    # AUTOINCREMENT, which sqlite-utils does not offer: an id must not be reused after its owner was erased.
    database.executescript("""
        CREATE TABLE sessions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
            user INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            topic INTEGER NOT NULL DEFAULT 0,
            created REAL NOT NULL,
            closed REAL
        ) STRICT;
        CREATE UNIQUE INDEX one_open_session ON sessions(chat, user, topic) WHERE closed IS NULL;
        CREATE INDEX sessions_user ON sessions(user);
    """)


@migrations()
def m002_exchanges(database: Database) -> None:
    """Pictures, questions with their answers, and a view of these as turns."""
    _table(
        database,
        "pictures",
        {"sha256": str, "media_type": str, "width": int, "height": int, "size": int, "phash": str, "created": float},
        key="sha256",
    )
    # AUTOINCREMENT: a rating button of an erased exchange must never count for a later one.
    database.executescript("""
        CREATE TABLE exchanges (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            session INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
            chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
            asker INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            "update" INTEGER NOT NULL UNIQUE,
            question TEXT NOT NULL,
            answer TEXT NOT NULL,
            model TEXT NOT NULL,
            system TEXT NOT NULL,
            prompt_hash TEXT NOT NULL,
            temperature REAL NOT NULL,
            top_p REAL NOT NULL,
            max_new_tokens INTEGER NOT NULL,
            seed INTEGER,
            finish TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL,
            encoded_tiles INTEGER NOT NULL,
            first_token_seconds REAL NOT NULL,
            seconds REAL NOT NULL,
            created REAL NOT NULL
        ) STRICT;
        CREATE INDEX exchanges_session ON exchanges(session, id);
        CREATE INDEX exchanges_asker ON exchanges(asker);
    """)
    _table(
        database,
        "exchange_pictures",
        {"exchange": int, "position": int, "sha256": str},
        key=("exchange", "position"),
        refers={"exchange": ("exchanges", "id", "CASCADE"), "sha256": ("pictures", "sha256", "RESTRICT")},
        indexes=(("sha256",),),
    )
    database.create_view(
        "turns",
        """
        SELECT id AS exchange, session, chat, 0 AS position, 'user' AS role, asker AS user, NULL AS model,
               question AS text, (SELECT count(*) FROM exchange_pictures WHERE exchange = exchanges.id) AS pictures,
               created
          FROM exchanges
        UNION ALL
        SELECT id, session, chat, 1, 'assistant', NULL, model, answer, 0, created FROM exchanges
        """,
    )


@migrations()
def m003_feedback(database: Database) -> None:
    """Votes, which are only ever added (and deleted with their person), and the latest vote of each rater."""
    database.executescript("""
        CREATE TABLE feedback (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
            rater INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            value INTEGER NOT NULL CHECK (value IN (-1, 1)),
            "update" INTEGER NOT NULL UNIQUE,
            created REAL NOT NULL
        ) STRICT;
        CREATE INDEX feedback_exchange ON feedback(exchange, rater, id);
        CREATE INDEX feedback_rater ON feedback(rater);
        CREATE TRIGGER feedback_is_append_only BEFORE UPDATE ON feedback
        BEGIN
            SELECT RAISE(ABORT, 'feedback is append-only: add another vote instead');
        END;
    """)
    # With max(), SQLite takes the other columns from the row with the maximum: https://www.sqlite.org/quirks.html
    database.create_view(
        "ratings",
        'SELECT exchange, rater, value, "update", created, max(id) AS feedback FROM feedback GROUP BY exchange, rater',
    )


@migrations()
def m004_inbox(database: Database) -> None:
    """Updates as they were received, and the messages that answer them."""
    _table(
        database,
        "inbox",
        {
            "id": int,
            "lane": str,
            "payload": str,
            "attempts": int,
            "received": float,
            "state": str,
            "error": str,
            "finished": float,
        },
        defaults={"attempts": 0, "state": "stored", "error": ""},
        nullable=("finished",),
    )
    _table(
        database,
        "replies",
        {"update": int, "slot": int, "chat": int, "message": int, "final": int, "doubtful": int, "created": float},
        key=("update", "slot"),
        defaults={"final": 0, "doubtful": 0},
        nullable=("message",),
    )
    database.executescript("""
        CREATE INDEX inbox_open ON inbox(id) WHERE state IN ('stored', 'begun');
        CREATE INDEX replies_doubtful ON replies(doubtful) WHERE doubtful > 0;
    """)


@migrations()
def m005_runs(database: Database) -> None:
    """Retraining runs, of which at most one is active, and the exchanges that each was trained on."""
    database.executescript("""
        CREATE TABLE runs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            state TEXT NOT NULL DEFAULT 'due',
            trigger TEXT NOT NULL,
            requested_by INTEGER,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            step INTEGER NOT NULL DEFAULT 0,
            steps INTEGER NOT NULL DEFAULT 0,
            loss REAL,
            samples INTEGER NOT NULL DEFAULT 0,
            held_out INTEGER NOT NULL DEFAULT 0,
            raters INTEGER NOT NULL DEFAULT 0,
            directory TEXT NOT NULL DEFAULT '',
            reason TEXT NOT NULL DEFAULT '',
            model TEXT,
            cancel_requested INTEGER NOT NULL DEFAULT 0
        ) STRICT;
        CREATE UNIQUE INDEX one_active_run ON runs((1)) WHERE state IN ('due', 'training', 'merging', 'evaluating');
    """)
    _table(
        database,
        "run_selections",
        {"run": int, "exchange": int, "position": int, "split": str},
        key=("run", "exchange"),
        refers={"run": ("runs", "id", "CASCADE"), "exchange": ("exchanges", "id", "CASCADE")},
        indexes=(("exchange",),),
    )
    database.executescript("""
        CREATE TRIGGER selections_are_frozen BEFORE UPDATE ON run_selections
        BEGIN
            SELECT RAISE(ABORT, 'a selection is frozen: start another run instead');
        END;
    """)


@migrations()
def m006_models(database: Database) -> None:
    """Models, of which at most one is live, and every change of the live one."""
    _table(
        database,
        "models",
        {
            "id": str,
            "directory": str,
            "state": str,
            "run": int,
            "created": float,
            "reason": str,
            "report": str,
            "manifest_hash": str,
        },
        defaults={"reason": "", "report": "", "manifest_hash": ""},
        nullable=("run",),
        refers={"run": ("runs", "id", "SET NULL")},
    )
    _table(
        database,
        "promotions",
        {"id": int, "model": str, "previous": str, "by": int, "created": float, "done": float, "error": str},
        defaults={"error": ""},
        nullable=("previous", "by", "done"),
        refers={"model": ("models", "id", "NO ACTION"), "previous": ("models", "id", "NO ACTION")},
        indexes=(("model",), ("previous",)),
    )
    database.executescript("CREATE UNIQUE INDEX one_live_model ON models(state) WHERE state = 'live';")


@migrations()
def m007_time_left(database: Database) -> None:
    """The estimated time left in the present state of a run."""
    database.execute("ALTER TABLE runs ADD COLUMN seconds_left REAL")


@migrations()
def m008_privacy(database: Database) -> None:
    """People who opted out of training, the senders of pictures, and removals outside the ledger that are still due."""
    database.execute("ALTER TABLE users ADD COLUMN opted_out INTEGER NOT NULL DEFAULT 0")
    _table(
        database,
        "picture_senders",
        {"sha256": str, "sender": int, "created": float},
        key=("sha256", "sender"),
        refers={"sha256": ("pictures", "sha256", "CASCADE"), "sender": ("users", "id", "CASCADE")},
        indexes=(("sender",),),
    )
    database.execute(
        "INSERT INTO picture_senders(sha256, sender, created) SELECT sha256, asker, max(created)"
        " FROM exchange_pictures JOIN exchanges ON exchanges.id = exchange GROUP BY sha256, asker"
    )
    _table(database, "removals", {"kind": str, "name": str}, key=("kind", "name"))


@migrations()
def m009_steering(database: Database) -> None:
    """Answers that replace earlier ones, and the question that a message of the bot answers."""
    database.executescript("""
        ALTER TABLE exchanges ADD COLUMN replaces INTEGER REFERENCES exchanges(id) ON DELETE SET NULL;
        CREATE INDEX exchanges_replaces ON exchanges(replaces) WHERE replaces IS NOT NULL;
        ALTER TABLE replies ADD COLUMN question INTEGER NOT NULL DEFAULT 0;
        CREATE INDEX replies_question ON replies(chat, question) WHERE question <> 0;
        CREATE INDEX replies_message ON replies(chat, message);
    """)


@migrations()
def m010_demonstrations(database: Database) -> None:
    """Votes that were taken back (0), reasons for votes, and better answers that people suggest."""
    # A CHECK cannot be altered: https://www.sqlite.org/lang_altertable.html
    database.executescript("""
        DROP VIEW ratings;
        DROP TRIGGER feedback_is_append_only;
        ALTER TABLE feedback RENAME TO former_feedback;
        CREATE TABLE feedback (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
            rater INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
            reason TEXT NOT NULL DEFAULT '',
            "update" INTEGER NOT NULL UNIQUE,
            created REAL NOT NULL
        ) STRICT;
        INSERT INTO feedback(id, exchange, rater, value, "update", created)
            SELECT id, exchange, rater, value, "update", created FROM former_feedback;
        DROP TABLE former_feedback;
        CREATE INDEX feedback_exchange ON feedback(exchange, rater, id);
        CREATE INDEX feedback_rater ON feedback(rater);
        CREATE TRIGGER feedback_is_append_only BEFORE UPDATE ON feedback
        BEGIN
            SELECT RAISE(ABORT, 'feedback is append-only: add another vote instead');
        END;
        CREATE VIEW ratings AS
            SELECT * FROM (
                SELECT exchange, rater, value, reason, "update", created, max(id) AS feedback
                  FROM feedback GROUP BY exchange, rater)
             WHERE value <> 0;
        CREATE TABLE demonstrations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            exchange INTEGER NOT NULL REFERENCES exchanges(id) ON DELETE CASCADE,
            author INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            text TEXT NOT NULL,
            "update" INTEGER NOT NULL UNIQUE,
            created REAL NOT NULL,
            confirmed_by INTEGER REFERENCES users(id) ON DELETE SET NULL
        ) STRICT;
        CREATE INDEX demonstrations_exchange ON demonstrations(exchange);
        CREATE INDEX demonstrations_author ON demonstrations(author);
        CREATE INDEX demonstrations_confirmed_by ON demonstrations(confirmed_by);
    """)


@migrations()
def m011_broadcasts(database: Database) -> None:
    """The recipients of an admin's broadcasts, and the state of each."""
    database.executescript("""
        CREATE TABLE broadcasts (
            "update" INTEGER NOT NULL,
            chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
            state TEXT NOT NULL DEFAULT 'due'
                CHECK (state IN ('due', 'sending', 'told', 'unreachable', 'failed', 'doubtful', 'spared')),
            PRIMARY KEY ("update", chat)
        ) STRICT;
        CREATE INDEX broadcasts_chat ON broadcasts(chat);
        CREATE INDEX broadcasts_state ON broadcasts("update", state);
    """)


@migrations()
def m012_menus(database: Database) -> None:
    """Chats with a command menu of their own."""
    _table(database, "menus", {"chat": int, "language": str}, key=("chat", "language"))


@migrations()
def m013_settled_runs(database: Database) -> None:
    """The mark of runs whose end has had all its consequences."""
    database.execute("ALTER TABLE runs ADD COLUMN settled INTEGER NOT NULL DEFAULT 1")


@migrations()
def m014_pruned_models(database: Database) -> None:
    """The mark of models without a directory that can be merged again from their adapter."""
    database.execute("ALTER TABLE models ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0")


@migrations()
def m015_top_k(database: Database) -> None:
    """The top-k that an answer was sampled with; NULL for exchanges recorded before."""
    database.execute("ALTER TABLE exchanges ADD COLUMN top_k INTEGER")


@migrations()
def m016_rollbacks(database: Database) -> None:
    """The mark of promotions that were rollbacks."""
    database.execute("ALTER TABLE promotions ADD COLUMN back INTEGER NOT NULL DEFAULT 0")


@migrations()
def m017_clean_pictures(database: Database) -> None:
    """States and former names of pictures, files that crashed a decoder, and one-time tasks after an upgrade."""
    database.executescript("""
        ALTER TABLE pictures ADD COLUMN state TEXT NOT NULL DEFAULT 'raw'
            CHECK (state IN ('raw', 'clean', 'quarantined'));
        CREATE INDEX pictures_raw ON pictures(sha256) WHERE state = 'raw';
        CREATE INDEX pictures_quarantined ON pictures(sha256) WHERE state = 'quarantined';
        ALTER TABLE exchange_pictures ADD COLUMN former TEXT;
        CREATE INDEX exchange_pictures_former ON exchange_pictures(former) WHERE former IS NOT NULL;
        CREATE TABLE decoder_deaths (
            file TEXT NOT NULL PRIMARY KEY,
            deaths INTEGER NOT NULL,
            created REAL NOT NULL
        ) STRICT;
        CREATE TABLE chores (name TEXT NOT NULL PRIMARY KEY, done REAL NOT NULL) STRICT;
    """)


@migrations()
def m018_reasons(database: Database) -> None:
    """The template and the values of each reason as JSON, for its translation; empty for a text without them."""
    database.executescript("""
        ALTER TABLE runs ADD COLUMN reason_parts TEXT NOT NULL DEFAULT '';
        ALTER TABLE models ADD COLUMN reason_parts TEXT NOT NULL DEFAULT '';
    """)


@migrations()
def m019_canaries(database: Database) -> None:
    """Trials of models alongside the live one; `after` is the newest exchange before the trial."""
    database.executescript("""
        CREATE TABLE canaries (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            model TEXT NOT NULL REFERENCES models(id),
            live TEXT NOT NULL REFERENCES models(id),
            run INTEGER REFERENCES runs(id) ON DELETE SET NULL,
            share REAL NOT NULL,
            started REAL NOT NULL,
            after INTEGER NOT NULL,
            ended REAL,
            verdict TEXT CHECK (verdict IN ('promoted', 'rolled_back', 'stopped', 'void')),
            reason TEXT NOT NULL DEFAULT '',
            reason_parts TEXT NOT NULL DEFAULT '',
            CHECK ((ended IS NULL) = (verdict IS NULL))
        ) STRICT;
        CREATE INDEX canaries_model ON canaries(model);
        CREATE INDEX canaries_live ON canaries(live);
        CREATE INDEX canaries_run ON canaries(run);
        CREATE UNIQUE INDEX one_trial ON canaries(ended IS NULL) WHERE ended IS NULL;
        CREATE UNIQUE INDEX one_canary ON models(state) WHERE state = 'canary';
    """)


@migrations()
def m020_fingerprints(database: Database) -> None:
    """The hash of a run's inputs; empty for runs of earlier versions."""
    database.execute("ALTER TABLE runs ADD COLUMN fingerprint TEXT NOT NULL DEFAULT ''")


@migrations()
def m021_duels(database: Database) -> None:
    """Pairs of answers to one question, of which a person may choose one; `rival` is an exchange as JSON."""
    database.executescript("""
        CREATE TABLE duels (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            exchange INTEGER NOT NULL UNIQUE REFERENCES exchanges(id) ON DELETE CASCADE,
            rival TEXT NOT NULL,
            rival_model TEXT NOT NULL,
            chooser INTEGER REFERENCES users(id) ON DELETE CASCADE,
            better INTEGER CHECK (better IN (0, 1)),
            created REAL NOT NULL,
            CHECK ((chooser IS NULL) = (better IS NULL))
        ) STRICT;
        CREATE INDEX duels_chooser ON duels(chooser);
    """)


@migrations()
def m022_teacher_notes(database: Database) -> None:
    """People who want a note when a model that learned from their votes goes live, and those who have received one."""
    database.executescript("""
        ALTER TABLE users ADD COLUMN wants_notes INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE teacher_notes (
            model TEXT NOT NULL REFERENCES models(id),
            person INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            created REAL NOT NULL,
            PRIMARY KEY (model, person)
        ) STRICT;
        CREATE INDEX teacher_notes_person ON teacher_notes(person);
    """)
