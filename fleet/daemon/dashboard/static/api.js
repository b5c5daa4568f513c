// The manager API as the page uses it. Text from it is only ever given to the library as text.

// What makes the session's cookie worth something: kept where only this origin reads it, sent with every request.
const KEY = "fleet-session-key";
const headers = (more) => ({ "X-Fleet-Dashboard": localStorage.getItem(KEY) || "1", ...more });

// Asked for before the rest of the page's files are here: what it reads first, each once.
const begun = new Map();

const ask = (path) => {
  const early = begun.get(path);
  begun.delete(path);
  return early || fetch(path, { headers: headers() });
};

/** What nobody took by now is of a time that has passed. */
export function dropBegun() {
  for (const early of begun.values()) early.then((response) => response.body.cancel()).catch(() => {});
  begun.clear();
}

export async function read(path) {
  return answer(await ask(path));
}

export async function change(path, body, method = "POST") {
  return answer(
    await fetch(path, { method, headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body) }),
  );
}

export async function signIn(token) {
  const { Key } = await change("/fleet/v1/session", { Token: token });
  localStorage.setItem(KEY, Key);
}

/** Whether a link of `fleet dashboard` led here. */
export const hasToken = () => location.hash.startsWith("#token=");

/** Signs in with that link's token, which then is in neither the address nor the history. */
export async function takeToken() {
  if (!hasToken()) return;
  const token = location.hash.slice("#token=".length);
  history.replaceState(null, "", "/");
  await signIn(token);
}

export async function signOut() {
  await change("/fleet/v1/session", {}, "DELETE");
  localStorage.removeItem(KEY);
}

/** Whether an error says that nobody is signed in. */
export const isSignedOut = (error) => error.status === 401;

/** For how many seconds a manager without a majority has shown the same, as it said lately; null while it has one. */
export const stale = { seconds: null };

async function answer(response) {
  if (response.url.includes("/fleet/v1/usage")) stale.seconds = response.headers.get("Fleet-Stale");
  const text = await response.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    value = { message: text };
  }
  if (!response.ok) {
    const error = new Error((value && value.message) || `answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return value;
}

/** Whether an error says that there is no such thing. */
export const isMissing = (error) => error.status === 404;

/** Calls `each` for every JSON value of an answer that has one a line and goes on, until it ends or `signal` is aborted. */
export async function followLines(path, each, signal) {
  const response = await (begun.has(path) ? ask(path) : fetch(path, { signal, headers: headers() }));
  if (!response.ok) await answer(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  signal.addEventListener("abort", () => reader.cancel().catch(() => {}));
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.trim()) each(JSON.parse(line));
  }
}

/** Calls `each(text, isError)` for pieces of output. Frames: stream, three zeros, length (big endian); none with a terminal. With
 * `detailed` each line begins with what it is of. */
export async function followLogs(path, { hasTerminal, detailed }, each, signal) {
  const response = await fetch(`${path}?stdout=1&stderr=1&follow=1&tail=200${detailed ? "&details=1" : ""}`, { signal, headers: headers() });
  if (!response.ok) throw new Error((await response.text()) || `answered ${response.status}`);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = new Uint8Array(0);
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    if (hasTerminal) {
      each(decoder.decode(value, { stream: true }), false);
      continue;
    }
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest);
    bytes.set(value, rest.length);
    let at = 0;
    while (bytes.length - at >= 8) {
      const length = new DataView(bytes.buffer).getUint32(at + 4);
      if (bytes.length - at - 8 < length) break;
      each(new TextDecoder().decode(bytes.subarray(at + 8, at + 8 + length)), bytes[at] === 2);
      at += 8 + length;
    }
    rest = bytes.slice(at);
  }
}

if (!hasToken()) for (const path of ["/info", "/fleet/v1/whoami", "/fleet/v1/watch"]) { // in the order in which they are waited for
  const early = fetch(path, { headers: headers() });
  early.catch(() => {}); // whoever waits for it is told
  begun.set(path, early);
}
