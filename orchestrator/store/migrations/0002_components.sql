-- Version 2. Agents whose brain is a WebAssembly component: their versions, the size of their state,
-- what a component may ask for, and agents that come and go while the daemon runs.

-- ---- Agents -------------------------------------------------------------------------------------

-- False for an agent without duties whose component takes what comes: there is nothing to compare.
ALTER TABLE agent ADD COLUMN screened INTEGER NOT NULL DEFAULT 1 CHECK (screened IN (0, 1));
ALTER TABLE agent ADD COLUMN state_max INTEGER NOT NULL DEFAULT 0 CHECK (state_max >= 0);
-- Who retired it. Null for one that is active, or that only is not in the configuration any more.
ALTER TABLE agent ADD COLUMN retired_by TEXT CHECK (retired_by IS NULL OR state = 'retired');

-- The component that an agent ran, runs or is about to run. Each version has one life: who goes back
-- to an earlier component installs it again, under the next number.
CREATE TABLE agent_version (
  agent        TEXT    NOT NULL REFERENCES agent (name),
  number       INTEGER NOT NULL CHECK (number > 0),
  sha256       TEXT    NOT NULL CHECK (length(sha256) = 64),
  size_bytes   INTEGER NOT NULL CHECK (size_bytes >= 0),
  world        TEXT    NOT NULL,
  source       TEXT    NOT NULL CHECK (source IN ('configuration', 'upgrade', 'rollback')),
  state        TEXT    NOT NULL CHECK (state IN
                 ('candidate', 'active', 'retired', 'rolled-back', 'refused')),
  installed_by TEXT    NOT NULL,
  installed_us INTEGER NOT NULL,
  activated_us INTEGER,          -- from then on it was given the messages
  settled_us   INTEGER,          -- and was not on probation any more
  ended_us     INTEGER,
  reason       TEXT,             -- why it ended
  PRIMARY KEY (agent, number),
  CHECK ((state IN ('active', 'retired', 'rolled-back')) = (activated_us IS NOT NULL)),
  CHECK (settled_us IS NULL OR activated_us IS NOT NULL),
  CHECK ((state IN ('retired', 'rolled-back', 'refused')) = (ended_us IS NOT NULL)),
  CHECK ((ended_us IS NULL) = (reason IS NULL))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX agent_version_active ON agent_version (agent) WHERE state = 'active';
CREATE UNIQUE INDEX agent_version_candidate ON agent_version (agent) WHERE state = 'candidate';

CREATE TRIGGER agent_version_insert_ownership BEFORE INSERT ON agent_version
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: agent_version belongs to the bus'); END;
CREATE TRIGGER agent_version_update_ownership BEFORE UPDATE ON agent_version
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: agent_version belongs to the bus'); END;
CREATE TRIGGER agent_version_delete_ownership BEFORE DELETE ON agent_version
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: agent_version belongs to the bus'); END;

-- Composing deliveries too: an agent that leaves has to finish all that it has.
DROP INDEX delivery_pending;
CREATE INDEX delivery_pending ON delivery (agent, composing)
  WHERE state IN ('queued', 'leased', 'parked');

-- ---- State --------------------------------------------------------------------------------------

-- The size of each agent's state: keys, values, and 64 bytes for each row, which cost as much without
-- them. Kept by the triggers below.
CREATE TABLE state_size (
  owner TEXT    PRIMARY KEY,
  bytes INTEGER NOT NULL CHECK (bytes >= 0)
) STRICT, WITHOUT ROWID;
INSERT INTO state_size (owner, bytes)
  SELECT owner, sum(64 + octet_length(key) + length(value)) FROM state GROUP BY owner;

CREATE TRIGGER state_size_after_insert AFTER INSERT ON state BEGIN
  INSERT INTO state_size (owner, bytes)
    VALUES (NEW.owner, 64 + octet_length(NEW.key) + length(NEW.value))
    ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER state_size_after_update AFTER UPDATE ON state BEGIN
  UPDATE state_size SET bytes = bytes + octet_length(NEW.key) + length(NEW.value)
    - octet_length(OLD.key) - length(OLD.value) WHERE owner = OLD.owner;
END;
CREATE TRIGGER state_size_after_delete AFTER DELETE ON state BEGIN
  UPDATE state_size SET bytes = bytes - 64 - octet_length(OLD.key) - length(OLD.value)
    WHERE owner = OLD.owner;
END;

CREATE TRIGGER state_size_insert_ownership BEFORE INSERT ON state_size
WHEN NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: state_size belongs to its owner'); END;
CREATE TRIGGER state_size_update_ownership BEFORE UPDATE ON state_size
WHEN OLD.owner IS NOT actor() OR NEW.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: state_size belongs to its owner'); END;
CREATE TRIGGER state_size_delete_ownership BEFORE DELETE ON state_size
WHEN OLD.owner IS NOT actor()
BEGIN SELECT RAISE(ABORT, 'ownership: state_size belongs to its owner'); END;

-- ---- The journal, with the effects of a component -----------------------------------------------

CREATE TABLE journal_of_version_2 (
  delivery    INTEGER NOT NULL REFERENCES delivery (id),
  run         INTEGER NOT NULL,
  step        INTEGER NOT NULL CHECK (step >= -1),
  kind        TEXT    NOT NULL CHECK (kind IN
                ('beginning', 'infer', 'weigh', 'recall', 'tool', 'note',
                 'offer', 'read-state', 'list-tasks', 'emit-health')),
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
INSERT INTO journal_of_version_2
  SELECT delivery, run, step, kind, phase, key_hash, request, result, tokens, charged_us,
    prompt_set, started_us, finished_us FROM journal;
DROP TABLE journal;
ALTER TABLE journal_of_version_2 RENAME TO journal;

CREATE TRIGGER journal_insert_ownership BEFORE INSERT ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;
CREATE TRIGGER journal_update_ownership BEFORE UPDATE ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;
CREATE TRIGGER journal_delete_ownership BEFORE DELETE ON journal
WHEN actor() IS NOT 'bus'
BEGIN SELECT RAISE(ABORT, 'ownership: journal belongs to the bus'); END;
