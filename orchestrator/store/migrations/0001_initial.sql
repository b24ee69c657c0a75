-- Version 1. Times are integer microseconds since the epoch, ids integers, `class` the rank of a
-- priority (0 urgent … 4 background). Who may write a row stands in the triggers at the end.

-- ---- Agents and their topics --------------------------------------------------------------------

CREATE TABLE agent (
  id            INTEGER PRIMARY KEY,
  name          TEXT    NOT NULL UNIQUE,
  role          TEXT    NOT NULL CHECK (role IN ('agent', 'conductor')),
  state         TEXT    NOT NULL CHECK (state IN ('active', 'retired')),
  class         INTEGER NOT NULL CHECK (class BETWEEN 0 AND 4),
  inbox_max     INTEGER NOT NULL CHECK (inbox_max > 0),
  publishes     TEXT    NOT NULL CHECK (json_valid(publishes)),
  delegates     TEXT    NOT NULL CHECK (json_valid(delegates)),
  registered_us INTEGER NOT NULL,
  changed_us    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX agent_one_conductor ON agent (role)
  WHERE role = 'conductor' AND state = 'active';

CREATE TABLE topic_subscription (
  agent   TEXT NOT NULL REFERENCES agent (name),
  pattern TEXT NOT NULL,
  PRIMARY KEY (agent, pattern)
) STRICT, WITHOUT ROWID;

-- ---- Conversations, messages, deliveries --------------------------------------------------------

CREATE TABLE conversation (
  id          INTEGER PRIMARY KEY,
  correlation TEXT    NOT NULL UNIQUE,
  state       TEXT    NOT NULL CHECK (state IN ('open', 'composing', 'answered')),
  class       INTEGER NOT NULL CHECK (class BETWEEN 0 AND 4),
  round       INTEGER NOT NULL CHECK (round > 0),
  opened_by   TEXT    NOT NULL,
  question    INTEGER,          -- the first message
  composer    INTEGER,          -- the composing delivery that may answer it
  reply       TEXT,             -- the latest answer
  opened_us   INTEGER NOT NULL,
  answered_us INTEGER,
  CHECK (state <> 'composing' OR composer IS NOT NULL),
  CHECK (state <> 'answered' OR (reply IS NOT NULL AND answered_us IS NOT NULL))
) STRICT;
CREATE INDEX conversation_unanswered ON conversation (id) WHERE state <> 'answered';

CREATE TABLE message (
  id           INTEGER PRIMARY KEY,
  conversation INTEGER NOT NULL REFERENCES conversation (id),
  round        INTEGER NOT NULL,
  topic        TEXT    NOT NULL,
  sender       TEXT    NOT NULL,
  class        INTEGER NOT NULL CHECK (class BETWEEN 0 AND 4),
  payload      BLOB    NOT NULL,
  cause        INTEGER,         -- the message whose handling published this one
  produced_by  INTEGER,         -- the delivery whose completion published it
  hops         INTEGER NOT NULL CHECK (hops >= 0),
  composed     INTEGER NOT NULL CHECK (composed IN (0, 1)),
  fallback     TEXT,            -- who takes it if nobody does
  publisher_id TEXT,            -- the publisher's own id for it, against doubles
  sent_us      INTEGER NOT NULL,
  expires_us   INTEGER NOT NULL
) STRICT;
CREATE INDEX message_conversation ON message (conversation, id);
CREATE UNIQUE INDEX message_publisher_id ON message (sender, publisher_id)
  WHERE publisher_id IS NOT NULL;

CREATE TABLE delivery (
  id              INTEGER PRIMARY KEY,
  message         INTEGER NOT NULL REFERENCES message (id),
  conversation    INTEGER NOT NULL,
  agent           TEXT    NOT NULL REFERENCES agent (name),
  class           INTEGER NOT NULL CHECK (class BETWEEN 0 AND 4),
  state           TEXT    NOT NULL CHECK (state IN ('queued', 'leased', 'parked', 'done', 'dead')),
  composing       INTEGER NOT NULL CHECK (composing IN (0, 1)),
  screened        INTEGER NOT NULL CHECK (screened IN (0, 1)),
  must_take       INTEGER NOT NULL CHECK (must_take IN (0, 1)),
  deferred        INTEGER NOT NULL DEFAULT 0 CHECK (deferred IN (0, 1)),
  deaths          INTEGER NOT NULL DEFAULT 0,   -- of workers that held it
  run             INTEGER NOT NULL DEFAULT 0,   -- a deferral ends one run, the next begins anew
  incarnation     TEXT,                         -- the worker that holds it, or held it last
  evidence        TEXT    CHECK (evidence IS NULL OR json_valid(evidence)),
  parked_reason   TEXT    CHECK (parked_reason IN
                    ('deferred', 'attention', 'backpressure', 'retry', 'job', 'preempted')),
  parked_until_us INTEGER,
  parked_on       TEXT,                         -- whom or what it waits for, for people
  outcome         TEXT    CHECK (outcome IN
                    ('acted', 'delegated', 'ignored', 'deferred', 'composed', 'failed')),
  outcome_reason  TEXT,
  last_error      TEXT,
  queued_us       INTEGER NOT NULL,
  leased_us       INTEGER,
  finished_us     INTEGER,
  CHECK ((state = 'parked') = (parked_reason IS NOT NULL)),
  CHECK (state <> 'leased' OR incarnation IS NOT NULL),
  CHECK (state <> 'done' OR outcome IS NOT NULL),
  CHECK ((state IN ('done', 'dead')) = (finished_us IS NOT NULL))
) STRICT;
CREATE INDEX delivery_next ON delivery (agent, class, id)
  WHERE state = 'queued' AND screened = 1;
CREATE UNIQUE INDEX delivery_one_lease ON delivery (agent) WHERE state = 'leased';
CREATE INDEX delivery_pending ON delivery (agent)
  WHERE state IN ('queued', 'leased', 'parked') AND composing = 0;
CREATE INDEX delivery_unsettled ON delivery (conversation)
  WHERE state IN ('queued', 'leased', 'parked') AND composing = 0;
CREATE INDEX delivery_due ON delivery (parked_until_us)
  WHERE state = 'parked' AND parked_until_us IS NOT NULL;
CREATE INDEX delivery_unscreened ON delivery (message) WHERE state = 'queued' AND screened = 0;
CREATE INDEX delivery_message ON delivery (message);

-- The texts of all prompts of an agent, once for each version that was ever used.
CREATE TABLE prompt_set (
  hash     TEXT    PRIMARY KEY,
  prompts  TEXT    NOT NULL CHECK (json_valid(prompts)),
  first_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What a delivery learned from outside. Step -1 is its beginning, steps from 0 are effects.
CREATE TABLE journal (
  delivery    INTEGER NOT NULL REFERENCES delivery (id),
  run         INTEGER NOT NULL,
  step        INTEGER NOT NULL CHECK (step >= -1),
  kind        TEXT    NOT NULL CHECK (kind IN
                ('beginning', 'infer', 'weigh', 'recall', 'tool', 'note')),
  phase       TEXT    CHECK (phase IN ('triage', 'act', 'reflect', 'compose')),
  key_hash    BLOB    NOT NULL CHECK (length(key_hash) = 32),
  request     TEXT    NOT NULL CHECK (json_valid(request)),
  result      TEXT    NOT NULL CHECK (json_valid(result)),
  tokens      INTEGER NOT NULL DEFAULT 0,
  charged_us  INTEGER NOT NULL DEFAULT 0,   -- counts against the budget; what was waited does not
  prompt_set  TEXT    REFERENCES prompt_set (hash),
  started_us  INTEGER NOT NULL,
  finished_us INTEGER NOT NULL,
  PRIMARY KEY (delivery, run, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letter (
  id           INTEGER PRIMARY KEY,
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
  died_us      INTEGER NOT NULL
) STRICT;
CREATE INDEX dead_letter_conversation ON dead_letter (conversation);

-- ---- What belongs to an agent -------------------------------------------------------------------

CREATE TABLE state (
  owner      TEXT    NOT NULL,
  key        TEXT    NOT NULL,
  value      BLOB    NOT NULL,
  changed_us INTEGER NOT NULL,
  PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE task (
  id           INTEGER PRIMARY KEY,
  owner        TEXT    NOT NULL,
  title        TEXT    NOT NULL,
  state        TEXT    NOT NULL CHECK (state IN ('open', 'doing', 'done', 'dropped')),
  note         TEXT    NOT NULL,
  conversation INTEGER,
  created_us   INTEGER NOT NULL,
  changed_us   INTEGER NOT NULL
) STRICT;
CREATE INDEX task_owner ON task (owner, id);
CREATE INDEX task_unfinished ON task (owner, id) WHERE state IN ('open', 'doing');

CREATE TABLE memory (
  id         INTEGER PRIMARY KEY,
  owner      TEXT    NOT NULL,
  text       TEXT    NOT NULL,
  outcome    TEXT    NOT NULL CHECK (outcome IN ('success', 'partial', 'failure')),
  lesson     TEXT    NOT NULL,
  importance REAL    NOT NULL CHECK (importance BETWEEN 0 AND 1),
  embedding  BLOB    CHECK (embedding IS NULL OR length(embedding) = 1024),
  delivery   INTEGER,
  created_us INTEGER NOT NULL
) STRICT;
CREATE INDEX memory_owner ON memory (owner, id);

CREATE VIRTUAL TABLE memory_text USING fts5 (
  text, lesson, content = 'memory', content_rowid = 'id', tokenize = 'porter unicode61'
);
-- A partition takes whole chunks: 64 vectors are 64 KiB, 1024 (the default) would be 1 MiB an agent.
CREATE VIRTUAL TABLE memory_vector USING vec0 (
  owner TEXT PARTITION KEY, embedding FLOAT[256], chunk_size = 64
);

CREATE TRIGGER memory_index_insert AFTER INSERT ON memory BEGIN
  INSERT INTO memory_text (rowid, text, lesson) VALUES (NEW.id, NEW.text, NEW.lesson);
  INSERT INTO memory_vector (rowid, owner, embedding)
    SELECT NEW.id, NEW.owner, NEW.embedding WHERE NEW.embedding IS NOT NULL;
END;
CREATE TRIGGER memory_index_delete AFTER DELETE ON memory BEGIN
  INSERT INTO memory_text (memory_text, rowid, text, lesson)
    VALUES ('delete', OLD.id, OLD.text, OLD.lesson);
  DELETE FROM memory_vector WHERE rowid = OLD.id;
END;
CREATE TRIGGER memory_index_update AFTER UPDATE OF text, lesson ON memory BEGIN
  INSERT INTO memory_text (memory_text, rowid, text, lesson)
    VALUES ('delete', OLD.id, OLD.text, OLD.lesson);
  INSERT INTO memory_text (rowid, text, lesson) VALUES (NEW.id, NEW.text, NEW.lesson);
END;
CREATE TRIGGER memory_index_embedding AFTER UPDATE OF embedding ON memory BEGIN
  DELETE FROM memory_vector WHERE rowid = OLD.id;
  INSERT INTO memory_vector (rowid, owner, embedding)
    SELECT NEW.id, NEW.owner, NEW.embedding WHERE NEW.embedding IS NOT NULL;
END;

CREATE TABLE attention (
  id          INTEGER PRIMARY KEY,
  owner       TEXT    NOT NULL,  -- who asks
  agent       TEXT    NOT NULL,  -- whom it is about
  question    TEXT    NOT NULL,
  state       TEXT    NOT NULL CHECK (state IN ('open', 'answered')),
  delivery    INTEGER,
  run         INTEGER,
  step        INTEGER,
  request     TEXT    CHECK (request IS NULL OR json_valid(request)),
  raised_us   INTEGER NOT NULL,
  answer      TEXT,
  answered_by TEXT,
  answered_us INTEGER,
  CHECK ((state = 'answered') = (answer IS NOT NULL)),
  CHECK (delivery IS NULL OR (run IS NOT NULL AND step IS NOT NULL AND request IS NOT NULL))
) STRICT;
CREATE INDEX attention_open ON attention (id) WHERE state = 'open';

-- ---- What happened ------------------------------------------------------------------------------

CREATE TABLE audit (
  id       INTEGER PRIMARY KEY,
  owner    TEXT    NOT NULL,
  action   TEXT    NOT NULL,
  subject  TEXT    NOT NULL,
  data     TEXT    NOT NULL CHECK (json_valid(data)),
  at_us    INTEGER NOT NULL,
  previous BLOB    NOT NULL CHECK (length(previous) = 32),
  hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TABLE health (
  id     INTEGER PRIMARY KEY,
  owner  TEXT    NOT NULL,
  kind   TEXT    NOT NULL,
  agent  TEXT,
  detail TEXT    NOT NULL,
  data   TEXT    NOT NULL CHECK (json_valid(data)),
  at_us  INTEGER NOT NULL
) STRICT;

CREATE TABLE span (
  id          INTEGER PRIMARY KEY,
  owner       TEXT    NOT NULL,
  delivery    INTEGER,
  name        TEXT    NOT NULL,
  data        TEXT    NOT NULL CHECK (json_valid(data)),
  started_us  INTEGER NOT NULL,
  finished_us INTEGER NOT NULL CHECK (finished_us >= started_us)
) STRICT;
CREATE INDEX span_delivery ON span (delivery) WHERE delivery IS NOT NULL;

-- ---- Who may write what -------------------------------------------------------------------------
-- `actor()` is a function of the writer's connection alone: no other program can write these tables.

CREATE TRIGGER agent_insert_ownership BEFORE INSERT ON agent
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: agent belongs to the bus'); END;
CREATE TRIGGER agent_update_ownership BEFORE UPDATE ON agent
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: agent belongs to the bus'); END;
CREATE TRIGGER agent_delete_ownership BEFORE DELETE ON agent
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: agent belongs to the bus'); END;

CREATE TRIGGER topic_subscription_insert_ownership BEFORE INSERT ON topic_subscription
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: topic_subscription belongs to the bus'); END;
CREATE TRIGGER topic_subscription_update_ownership BEFORE UPDATE ON topic_subscription
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: topic_subscription belongs to the bus'); END;
CREATE TRIGGER topic_subscription_delete_ownership BEFORE DELETE ON topic_subscription
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: topic_subscription belongs to the bus'); END;

CREATE TRIGGER conversation_insert_ownership BEFORE INSERT ON conversation
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: conversation belongs to the bus'); END;
CREATE TRIGGER conversation_update_ownership BEFORE UPDATE ON conversation
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: conversation belongs to the bus'); END;
CREATE TRIGGER conversation_delete_ownership BEFORE DELETE ON conversation
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: conversation belongs to the bus'); END;

CREATE TRIGGER message_insert_ownership BEFORE INSERT ON message
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: message belongs to the bus'); END;
CREATE TRIGGER message_update_ownership BEFORE UPDATE ON message
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: message belongs to the bus'); END;
CREATE TRIGGER message_delete_ownership BEFORE DELETE ON message
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: message belongs to the bus'); END;

CREATE TRIGGER delivery_insert_ownership BEFORE INSERT ON delivery
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: delivery belongs to the bus'); END;
CREATE TRIGGER delivery_update_ownership BEFORE UPDATE ON delivery
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: delivery belongs to the bus'); END;
CREATE TRIGGER delivery_delete_ownership BEFORE DELETE ON delivery
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: delivery belongs to the bus'); END;

CREATE TRIGGER prompt_set_insert_ownership BEFORE INSERT ON prompt_set
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: prompt_set belongs to the bus'); END;
CREATE TRIGGER prompt_set_update_ownership BEFORE UPDATE ON prompt_set
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: prompt_set belongs to the bus'); END;
CREATE TRIGGER prompt_set_delete_ownership BEFORE DELETE ON prompt_set
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: prompt_set belongs to the bus'); END;

CREATE TRIGGER journal_insert_ownership BEFORE INSERT ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;
CREATE TRIGGER journal_update_ownership BEFORE UPDATE ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;
CREATE TRIGGER journal_delete_ownership BEFORE DELETE ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;

CREATE TRIGGER dead_letter_insert_ownership BEFORE INSERT ON dead_letter
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: dead_letter belongs to the bus'); END;
CREATE TRIGGER dead_letter_update_ownership BEFORE UPDATE ON dead_letter
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: dead_letter belongs to the bus'); END;
CREATE TRIGGER dead_letter_delete_ownership BEFORE DELETE ON dead_letter
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: dead_letter belongs to the bus'); END;

CREATE TRIGGER state_insert_ownership BEFORE INSERT ON state
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: state belongs to its owner'); END;
CREATE TRIGGER state_update_ownership BEFORE UPDATE ON state
WHEN OLD.owner IS NOT actor() OR NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: state belongs to its owner'); END;
CREATE TRIGGER state_delete_ownership BEFORE DELETE ON state
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: state belongs to its owner'); END;

CREATE TRIGGER task_insert_ownership BEFORE INSERT ON task
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: task belongs to its owner'); END;
CREATE TRIGGER task_update_ownership BEFORE UPDATE ON task
WHEN OLD.owner IS NOT actor() OR NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: task belongs to its owner'); END;
CREATE TRIGGER task_delete_ownership BEFORE DELETE ON task
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: task belongs to its owner'); END;

CREATE TRIGGER memory_insert_ownership BEFORE INSERT ON memory
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: memory belongs to its owner'); END;
CREATE TRIGGER memory_update_ownership BEFORE UPDATE ON memory
WHEN OLD.owner IS NOT actor() OR NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: memory belongs to its owner'); END;
CREATE TRIGGER memory_delete_ownership BEFORE DELETE ON memory
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: memory belongs to its owner'); END;

CREATE TRIGGER health_insert_ownership BEFORE INSERT ON health
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: health belongs to its owner'); END;
CREATE TRIGGER health_update_ownership BEFORE UPDATE ON health
WHEN OLD.owner IS NOT actor() OR NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: health belongs to its owner'); END;
CREATE TRIGGER health_delete_ownership BEFORE DELETE ON health
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: health belongs to its owner'); END;

CREATE TRIGGER span_insert_ownership BEFORE INSERT ON span
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: span belongs to its owner'); END;
CREATE TRIGGER span_update_ownership BEFORE UPDATE ON span
WHEN OLD.owner IS NOT actor() OR NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: span belongs to its owner'); END;
CREATE TRIGGER span_delete_ownership BEFORE DELETE ON span
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: span belongs to its owner'); END;

-- The operator answers an attention request, and changes nothing else of it.
CREATE TRIGGER attention_insert_ownership BEFORE INSERT ON attention
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: attention belongs to its owner'); END;
CREATE TRIGGER attention_update_ownership BEFORE UPDATE ON attention
WHEN (OLD.owner IS NOT actor() OR NEW.owner IS NOT actor())
  AND NOT (actor() IS 'operator' AND OLD.state = 'open' AND NEW.state = 'answered'
    AND NEW.answered_by IS actor() AND NEW.id IS OLD.id AND NEW.owner IS OLD.owner
    AND NEW.agent IS OLD.agent AND NEW.question IS OLD.question AND NEW.delivery IS OLD.delivery
    AND NEW.run IS OLD.run AND NEW.step IS OLD.step AND NEW.request IS OLD.request
    AND NEW.raised_us IS OLD.raised_us)
BEGIN SELECT RAISE(ABORT, 'ownership: attention belongs to its owner'); END;
CREATE TRIGGER attention_delete_ownership BEFORE DELETE ON attention
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: attention belongs to its owner'); END;

-- The audit trail only grows.
CREATE TRIGGER audit_insert_ownership BEFORE INSERT ON audit
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: audit names who acted'); END;
CREATE TRIGGER audit_update_ownership BEFORE UPDATE ON audit
WHEN true
BEGIN SELECT RAISE(ABORT, 'ownership: audit only grows'); END;
CREATE TRIGGER audit_delete_ownership BEFORE DELETE ON audit
WHEN true
BEGIN SELECT RAISE(ABORT, 'ownership: audit only grows'); END;
