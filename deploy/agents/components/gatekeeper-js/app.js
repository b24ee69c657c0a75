// Checks what comes in from outside, and passes on what keeps the rules: the gatekeeper, in
// JavaScript. It takes the same configuration, says the same and is held to the same tests.
import { publish } from 'agent-net:core/bus@0.2.0';
import { log } from 'agent-net:core/logging@0.2.0';

const REJECTED = 'intake.rejected';

// Of a message that is rejected.
const SHOWN_CHARACTERS_MAX = 1000;

// Brackets in one message. A parser goes down a level at each, and the stack has an end.
const OPENED_MAX = 100;

let rules = new Map();

// The rule that a message breaks.
class Broken extends Error {}

export const lifecycle = {
  init(agentId, config) {
    const { kinds = {} } = config.length ? JSON.parse(text(config)) : {};
    rules = new Map(Object.entries(kinds));
    for (const [kind, rule] of rules) {
      if (!('topic' in rule)) throw `The rule for ${kind} has no topic`;
    }
  },

  // A string that is thrown is the reason of a refusal; an Error would be a trap.
  handle(msg) {
    try {
      const { topic, message } = check(msg.payload);
      return [envelope(topic, message, msg)];
    } catch (broken) {
      if (!(broken instanceof Broken)) throw broken;
      reject(msg, broken.message);
      return [];
    }
  },

  shutdown() {},
};

// Tell whoever listens. `publish` says at once if that is nobody.
function reject(msg, reason) {
  log('info', `rejected: ${reason}`);
  const beginning = text(msg.payload).slice(0, 2 * SHOWN_CHARACTERS_MAX);
  const shown = [...beginning].slice(0, SHOWN_CHARACTERS_MAX).join('');
  try {
    publish(envelope(REJECTED, { reason, message: shown }, msg));
  } catch {
    throw reason;
  }
}

function envelope(topic, message, { correlationId }) {
  const payload = new TextEncoder().encode(JSON.stringify(message));
  return { topic, sender: '', payload, correlationId };
}

function text(bytes, fatal = false) {
  return new TextDecoder('utf-8', { fatal, ignoreBOM: true }).decode(bytes);
}

// Where a message goes, and what of it. Throws `Broken`.
function check(payload) {
  if (count('[', payload) + count('{', payload) > OPENED_MAX) {
    throw new Broken('it is nested too deeply');
  }
  let parsed;
  try {
    parsed = JSON.parse(text(payload, true));
  } catch {
    throw new Broken('it is not JSON');
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new Broken('it is not a JSON object');
  }
  const { kind, ...message } = parsed;
  const rule = typeof kind === 'string' ? rules.get(kind) : undefined;
  if (!rule) throw new Broken('there is no rule for its kind');
  const fields = new Map(Object.entries(rule.fields ?? {}));
  for (const name of rule.required ?? []) {
    if (!Object.hasOwn(message, name)) throw new Broken(`${name} is missing`);
  }
  for (const [name, value] of Object.entries(message)) {
    if (!fields.has(name)) throw new Broken(`${name.slice(0, 100)} is not known`);
    checkField(name, value, fields.get(name));
  }
  return { topic: rule.topic, message };
}

// Searching is the engine's own work; a function of ours, called for each byte, would burn the fuel.
function count(character, bytes) {
  const wanted = character.charCodeAt(0);
  let found = 0;
  for (let at = bytes.indexOf(wanted); at >= 0; at = bytes.indexOf(wanted, at + 1)) found += 1;
  return found;
}

function checkField(name, value, rule) {
  if (!hasType(value, rule.type)) throw new Broken(`${name} is not of type ${rule.type}`);
  if (typeof value === 'number') {
    if (value < rule.minimum) throw new Broken(`${name} is under ${rule.minimum}`);
    if (value > rule.maximum) throw new Broken(`${name} is over ${rule.maximum}`);
  }
  if (typeof value === 'string' && isLonger(value, rule.longest)) {
    throw new Broken(`${name} is longer than ${rule.longest} characters`);
  }
  if (rule.one_of && !rule.one_of.includes(value)) {
    throw new Broken(`${name} is none of ${rule.one_of.join(', ')}`);
  }
}

// In characters, of which each is one or two units of a string.
function isLonger(value, longest) {
  return value.length > longest && (value.length > 2 * longest || [...value].length > longest);
}

function hasType(value, type) {
  // JSON may have 1e999, which is a number here.
  if (type === 'number') return Number.isFinite(value);
  if (type === 'integer') return Number.isInteger(value);
  return ['string', 'boolean'].includes(type) ? typeof value === type : true;
}
