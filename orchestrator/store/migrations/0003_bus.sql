-- Version 3. The bus at speed: what a message costs on its way is one row for itself and one for each
-- receiver, written once and finished once.

-- ---- Who writes ---------------------------------------------------------------------------------

-- The actor, for the triggers of the tables that every message goes through: reading a row costs a
-- tenth of a call into the program. Only the program can set it, since `actor()` is its function;
-- between two transactions it is null, so that no other program can write those tables either.
CREATE TABLE acting (
  id   INTEGER PRIMARY KEY CHECK (id = 1),
  name TEXT
) STRICT;
INSERT INTO acting (id, name) VALUES (1, NULL);
CREATE TRIGGER acting_insert_ownership BEFORE INSERT ON acting
BEGIN SELECT RAISE(ABORT, 'ownership: acting has one row'); END;
CREATE TRIGGER acting_update_ownership BEFORE UPDATE ON acting
WHEN NEW.name IS NOT nullif(actor(), '')
BEGIN SELECT RAISE(ABORT, 'ownership: acting belongs to the program'); END;
CREATE TRIGGER acting_delete_ownership BEFORE DELETE ON acting
BEGIN SELECT RAISE(ABORT, 'ownership: acting has one row'); END;

DROP TRIGGER conversation_insert_ownership;
DROP TRIGGER conversation_update_ownership;
DROP TRIGGER conversation_delete_ownership;
DROP TRIGGER message_insert_ownership;
DROP TRIGGER message_update_ownership;
DROP TRIGGER message_delete_ownership;
DROP TRIGGER delivery_insert_ownership;
DROP TRIGGER delivery_update_ownership;
DROP TRIGGER delivery_delete_ownership;

-- ---- Conversations ------------------------------------------------------------------------------

-- False where nobody waits for a reply: it is closed without one if there are no answers.
ALTER TABLE conversation ADD COLUMN asked INTEGER NOT NULL DEFAULT 1 CHECK (asked IN (0, 1));
-- How many messages it has had, which has a limit.
ALTER TABLE conversation ADD COLUMN messages INTEGER NOT NULL DEFAULT 0 CHECK (messages >= 0);
UPDATE conversation SET messages =
  (SELECT count(*) FROM message WHERE message.conversation = conversation.id);

-- ---- Deliveries ---------------------------------------------------------------------------------

-- What the runs of many deliveries have in common.
CREATE TABLE setting (
  id         INTEGER PRIMARY KEY,
  loop       INTEGER NOT NULL,
  component  TEXT    NOT NULL,   -- its SHA-256, or empty
  prompt_set TEXT    NOT NULL REFERENCES prompt_set (hash),
  UNIQUE (loop, component, prompt_set)
) STRICT;

-- The beginning of the present run: what it depends on from outside before its first effect. Those of
-- earlier runs are in the journal.
ALTER TABLE delivery ADD COLUMN begun_us INTEGER;
ALTER TABLE delivery ADD COLUMN seed INTEGER;
ALTER TABLE delivery ADD COLUMN setting INTEGER REFERENCES setting (id)
  CHECK ((setting IS NULL) = (begun_us IS NULL) AND (seed IS NULL) = (begun_us IS NULL));

INSERT INTO setting (loop, component, prompt_set)
  SELECT DISTINCT json_extract(result, '$.loop'), coalesce(json_extract(result, '$.component'), ''),
    prompt_set
  FROM journal WHERE kind = 'beginning';
UPDATE delivery SET begun_us = json_extract(journal.result, '$.now_us'),
    seed = json_extract(journal.result, '$.seed'),
    setting = (SELECT setting.id FROM setting
      WHERE setting.loop = json_extract(journal.result, '$.loop')
        AND setting.component = coalesce(json_extract(journal.result, '$.component'), '')
        AND setting.prompt_set = journal.prompt_set)
  FROM journal
  WHERE journal.delivery = delivery.id AND journal.run = delivery.run AND journal.kind = 'beginning';

-- `state IN (…)` in the condition of an index costs more than all the rest of a write.
DROP INDEX delivery_next;
DROP INDEX delivery_one_lease;
DROP INDEX delivery_pending;
DROP INDEX delivery_unsettled;
DROP INDEX delivery_unscreened;
CREATE INDEX delivery_unfinished ON delivery (agent, state, class, id) WHERE finished_us IS NULL;
CREATE INDEX delivery_unsettled ON delivery (conversation)
  WHERE finished_us IS NULL AND composing = 0;
CREATE INDEX delivery_unscreened ON delivery (message) WHERE screened = 0;

-- ---- The journal --------------------------------------------------------------------------------

DROP TRIGGER journal_delete_ownership;
DELETE FROM journal WHERE kind = 'beginning'
  AND run = (SELECT delivery.run FROM delivery WHERE delivery.id = journal.delivery);
CREATE TRIGGER journal_delete_ownership BEFORE DELETE ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;

-- A tool with effects outside the database has begun. Its result is in the journal; where that is
-- missing, it was in flight when something died, and only the tool can tell what came of it.
CREATE TABLE tool_call (
  delivery        INTEGER NOT NULL REFERENCES delivery (id),
  run             INTEGER NOT NULL,
  step            INTEGER NOT NULL,
  name            TEXT    NOT NULL,
  idempotency_key TEXT    NOT NULL,
  began_us        INTEGER NOT NULL,
  PRIMARY KEY (delivery, run, step)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER tool_call_insert_ownership BEFORE INSERT ON tool_call
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: tool_call belongs to the bus'); END;
CREATE TRIGGER tool_call_update_ownership BEFORE UPDATE ON tool_call
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: tool_call belongs to the bus'); END;
CREATE TRIGGER tool_call_delete_ownership BEFORE DELETE ON tool_call
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: tool_call belongs to the bus'); END;

-- ---- Dead letters -------------------------------------------------------------------------------

-- Numbers are not given twice, though people remove dead letters: the audit trail names them.
CREATE TABLE dead_letter_of_version_3 (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  conversation INTEGER NOT NULL,
  message      INTEGER,          -- null for an output that never became a message
  delivery     INTEGER,          -- the delivery that died, or whose output this is
  sender       TEXT    NOT NULL,
  receiver     TEXT,
  topic        TEXT    NOT NULL,
  payload      BLOB    NOT NULL,
  class        INTEGER NOT NULL CHECK (class BETWEEN 0 AND 4),
  code         TEXT    NOT NULL,
  reason       TEXT    NOT NULL,
  attempts     INTEGER NOT NULL,
  causes       TEXT    NOT NULL CHECK (json_valid(causes)),
  died_us      INTEGER NOT NULL,
  last_error   TEXT    NOT NULL DEFAULT '',
  replayed_as  INTEGER,          -- the message that a person has sent again in its place
  replayed_us  INTEGER
) STRICT;
INSERT INTO dead_letter_of_version_3 (id, conversation, message, delivery, sender, receiver, topic,
    payload, class, code, reason, attempts, causes, died_us)
  SELECT id, conversation, message, delivery, sender, receiver, topic, payload, class, code, reason,
    attempts, causes, died_us FROM dead_letter;
DROP TABLE dead_letter;
ALTER TABLE dead_letter_of_version_3 RENAME TO dead_letter;
CREATE INDEX dead_letter_conversation ON dead_letter (conversation);
CREATE TRIGGER dead_letter_insert_ownership BEFORE INSERT ON dead_letter
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: dead_letter belongs to the bus'); END;
CREATE TRIGGER dead_letter_update_ownership BEFORE UPDATE ON dead_letter
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: dead_letter belongs to the bus'); END;
CREATE TRIGGER dead_letter_delete_ownership BEFORE DELETE ON dead_letter
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: dead_letter belongs to the bus'); END;

-- ---- Who may write what -------------------------------------------------------------------------

CREATE TRIGGER setting_insert_ownership BEFORE INSERT ON setting
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: setting belongs to the bus'); END;
CREATE TRIGGER setting_update_ownership BEFORE UPDATE ON setting
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: setting belongs to the bus'); END;
CREATE TRIGGER setting_delete_ownership BEFORE DELETE ON setting
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: setting belongs to the bus'); END;

CREATE TRIGGER conversation_insert_ownership BEFORE INSERT ON conversation
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: conversation belongs to the bus'); END;
CREATE TRIGGER conversation_update_ownership BEFORE UPDATE ON conversation
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: conversation belongs to the bus'); END;
CREATE TRIGGER conversation_delete_ownership BEFORE DELETE ON conversation
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: conversation belongs to the bus'); END;

CREATE TRIGGER message_insert_ownership BEFORE INSERT ON message
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: message belongs to the bus'); END;
CREATE TRIGGER message_update_ownership BEFORE UPDATE ON message
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: message belongs to the bus'); END;
CREATE TRIGGER message_delete_ownership BEFORE DELETE ON message
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: message belongs to the bus'); END;

CREATE TRIGGER delivery_insert_ownership BEFORE INSERT ON delivery
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: delivery belongs to the bus'); END;
CREATE TRIGGER delivery_update_ownership BEFORE UPDATE ON delivery
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: delivery belongs to the bus'); END;
CREATE TRIGGER delivery_delete_ownership BEFORE DELETE ON delivery
WHEN (SELECT name FROM acting WHERE id = 1) IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: delivery belongs to the bus'); END;
