// The manager API as the page uses it. Text from it is only ever given to the library as text.

// What makes the session's cookie worth something: kept where only this origin reads it, sent with every request.
const KEY = "fleet-session-key";
const headers = (more) => ({ "X-Fleet-Dashboard": localStorage.getItem(KEY) || "1", ...more });

export async function read(path) {
  return answer(await fetch(path, { headers: headers() }));
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

export async function signOut() {
  await change("/fleet/v1/session", {}, "DELETE");
  localStorage.removeItem(KEY);
}

/** Whether an error says that nobody is signed in. */
export const isSignedOut = (error) => error.status === 401;

async function answer(response) {
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

/** Everything the overview shows. `cluster` is null where this host manages none; `who` is whoever looks. */
export async function readCluster() {
  const [info, who] = await Promise.all([read("/info"), read("/fleet/v1/whoami")]);
  if (!info.Swarm || info.Swarm.LocalNodeState !== "active" || !info.Swarm.ControlAvailable) return { info, who, cluster: null };
  const [nodes, services, tasks] = await Promise.all([read("/nodes"), read("/services?status=true"), read("/tasks")]);
  nodes.sort((a, b) => nodeName(a).localeCompare(nodeName(b)));
  services.sort((a, b) => a.Spec.Name.localeCompare(b.Spec.Name));
  tasks.sort((a, b) => (a.Status.Timestamp < b.Status.Timestamp ? 1 : -1));
  return { info, who, cluster: { nodes, services, tasks } };
}

export const nodeName = (node) => (node.Description && node.Description.Hostname) || node.ID;

/** Calls `each` for every event until `signal` is aborted. One JSON object a line. */
export async function followEvents(each, signal) {
  const response = await fetch("/events", { signal, headers: headers() });
  if (!response.ok) throw new Error(`answered ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.trim()) each(JSON.parse(line));
  }
}

/** Calls `each(text, isError)` for pieces of output. Frames: stream, three zeros, length (big endian); none with a terminal. */
export async function followLogs(path, hasTerminal, each, signal) {
  const response = await fetch(`${path}?stdout=1&stderr=1&follow=1&tail=200`, { signal, headers: headers() });
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
