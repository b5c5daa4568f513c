// The page: state is read again whenever an event arrives, and every few seconds; views are functions of it.
import { h, render } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { change, followEvents, followLogs, isSignedOut, nodeName, read, readCluster, signIn, signOut } from "./api.js";

const html = htm.bind(h);
const VIEWS = ["Cluster", "Services", "Tasks", "Stacks", "Events"];
const ROWS = 200, LINES = 1000, EVENTS = 200, REFRESH_MS = 4000, SETTLE_MS = 250;
const ENDED = new Set(["complete", "shutdown", "failed", "rejected", "orphaned", "remove"]);

const colour = (state) =>
  state === "running" || state === "ready" || state === "active" || state === "complete" ? "good"
  : state === "failed" || state === "rejected" || state === "orphaned" || state === "down" ? "bad"
  : state === "shutdown" || state === "remove" ? "off" : "wait";
const ago = (text) => {
  const s = Math.max(0, Math.round((Date.now() - Date.parse(text)) / 1000));
  return !Number.isFinite(s) ? "" : s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
};
const image = (spec) => ((spec.TaskTemplate.ContainerSpec || {}).Image || "").replace(/@sha256:.*/, "");
const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const Badge = ({ state }) => html`<span class=${"badge " + colour(state)}>${state}</span>`;

function names(cluster) {
  const nodes = new Map(cluster.nodes.map((n) => [n.ID, nodeName(n)]));
  const services = new Map(cluster.services.map((s) => [s.ID, s.Spec.Name]));
  return {
    node: (id) => nodes.get(id) || (id ? id.slice(0, 12) : "–"),
    task: (t) => `${services.get(t.ServiceID) || (t.ServiceID || t.ID).slice(0, 12)}.${t.Slot || nodes.get(t.NodeID) || t.ID.slice(0, 6)}`,
  };
}

function Cluster({ cluster, act, open }) {
  const name = names(cluster);
  const by = new Map();
  for (const t of cluster.tasks) if (!ENDED.has(t.Status.State)) by.set(t.NodeID || "", [...(by.get(t.NodeID || "") || []), t]);
  const waiting = by.get("") || [];
  const tiles = (tasks) => html`<ul class="tiles">${tasks.map((t) => html`<li key=${t.ID}><button class=${"tile " + colour(t.Status.State)}
    title=${`${name.task(t)}: ${t.Status.State}`} onClick=${() => open(t)}>${name.task(t)}</button></li>`)}</ul>`;
  return html`${waiting.length > 0 && html`<section class="card warn"><h2>Waiting for a node</h2>${tiles(waiting)}
      <p>${waiting[0].Status.Err || waiting[0].Status.Message}</p></section>`}
    <div class="grid">${cluster.nodes.map((n) => {
      const tasks = by.get(n.ID) || [];
      const all = (n.Description && n.Description.Resources) || {};
      const drained = n.Spec.Availability === "drain";
      return html`<section class="card node" key=${n.ID} aria-label=${"node " + nodeName(n)}>
        <h2>${nodeName(n)} <${Badge} state=${n.Status.State} />${n.Spec.Availability !== "active" && html` <${Badge} state=${n.Spec.Availability} />`}</h2>
        <p class="dim">${n.Spec.Role}${n.ManagerStatus && n.ManagerStatus.Leader ? ", leader" : ""} · ${n.Status.Addr}
          ${all.NanoCPUs ? ` · ${all.NanoCPUs / 1e9} CPU · ${gib(all.MemoryBytes)}` : ""} · ${tasks.length} ${tasks.length === 1 ? "task" : "tasks"}</p>
        ${tiles(tasks)}
        ${act && html`<p class="actions"><button onClick=${() => act({
          title: drained ? `Let ${nodeName(n)} take tasks again?` : `Drain ${nodeName(n)}?`,
          text: drained ? "New tasks may be placed there." : `Its ${tasks.length} tasks move to other nodes.`,
          verb: drained ? "Activate" : "Drain",
          run: async () => {
            const now = await read(`/nodes/${encodeURIComponent(n.ID)}`);
            await change(`/nodes/${encodeURIComponent(n.ID)}/update?version=${now.Version.Index}`, { ...now.Spec, Availability: drained ? "active" : "drain" });
          },
        })}>${drained ? "Activate" : "Drain"}</button></p>`}</section>`;
    })}</div>`;
}

async function updateService(id, edit) {
  const path = `/services/${encodeURIComponent(id)}`;
  const now = await read(path);
  const spec = structuredClone(now.Spec);
  edit(spec);
  await change(`${path}/update?version=${now.Version.Index}`, spec);
}

const createService = { title: "Create a service", verb: "Create", fields: [
  { name: "name", label: "Name", required: true }, { name: "image", label: "Image", required: true },
  { name: "replicas", label: "Replicas", type: "number", value: 1, min: 0, required: true }],
  run: (v) => change("/services/create", { Name: v.name, TaskTemplate: { ContainerSpec: { Image: v.image } },
    Mode: { Replicated: { Replicas: Number(v.replicas) } } }) };

function Services({ services, act, show }) {
  if (!services.length) return html`<p class="empty">No services yet. Create one here, or with <code>fleet service create</code>.</p>`;
  return html`<div class="grid wide">${services.map((s) => {
    const status = s.ServiceStatus || {}, replicated = s.Spec.Mode && s.Spec.Mode.Replicated, title = s.Spec.Name, update = s.UpdateStatus;
    return html`<section class="card" key=${s.ID} aria-label=${"service " + title}>
      <h2>${title} <span class=${"badge " + (status.RunningTasks >= status.DesiredTasks ? "good" : "wait")}>${status.RunningTasks}/${status.DesiredTasks}</span></h2>
      <progress max=${status.DesiredTasks || 1} value=${status.RunningTasks || 0} aria-label=${"running tasks of " + title}></progress>
      <p class="dim">${image(s.Spec)}${((s.Endpoint || {}).Ports || []).map((p) => ` · ${p.PublishedPort}→${p.TargetPort}/${p.Protocol}`)}</p>
      ${update && update.State && html`<p>Update: <b>${update.State}</b> ${update.Message}</p>`}
      <p class="actions">
        ${act && replicated && html`<button onClick=${() => act({ title: `Scale ${title}`, verb: "Scale",
          fields: [{ name: "replicas", label: "Replicas", type: "number", min: 0, value: replicated.Replicas, required: true }],
          run: (v) => updateService(s.ID, (spec) => { spec.Mode.Replicated.Replicas = Number(v.replicas); }) })}>Scale</button>`}
        ${act && html`<button onClick=${() => act({ title: `Update ${title}`, verb: "Update", text: "Tasks are replaced as its update settings say.",
          fields: [{ name: "image", label: "Image", value: image(s.Spec), required: true }],
          run: (v) => updateService(s.ID, (spec) => { spec.TaskTemplate.ContainerSpec.Image = v.image; }) })}>Update</button>`}
        <button onClick=${() => show({ title: `Logs of ${title}`, path: `/services/${encodeURIComponent(s.ID)}/logs`, tty: !!(s.Spec.TaskTemplate.ContainerSpec || {}).TTY })}>Logs</button>
      </p></section>`;
  })}</div>`;
}

function Tasks({ cluster, filter, setFilter, show }) {
  const name = names(cluster);
  const wanted = filter.toLowerCase();
  const found = cluster.tasks.filter((t) => !wanted || `${name.task(t)} ${t.ID} ${name.node(t.NodeID)} ${t.Status.State}`.toLowerCase().includes(wanted));
  return html`<label class="filter">Filter <input type="search" value=${filter} onInput=${(e) => setFilter(e.target.value)} placeholder="service, node, state, id" /></label>
    <p class="dim">${found.length} tasks${found.length > ROWS ? `, the newest ${ROWS} shown` : ""}</p>
    <ul class="rows">${found.slice(0, ROWS).map((t) => html`<li key=${t.ID}>
      <b>${name.task(t)}</b> <${Badge} state=${t.Status.State} /> <span class="dim">${name.node(t.NodeID)} · ${ago(t.Status.Timestamp)} ago · wanted ${t.DesiredState}</span>
      ${t.Status.Err && html`<p class="reason">${t.Status.Err}</p>`}
      <button onClick=${() => show({ title: `Logs of ${name.task(t)}`, path: `/tasks/${encodeURIComponent(t.ID)}/logs`, tty: !!((t.Spec || {}).ContainerSpec || {}).TTY })}>Logs</button></li>`)}</ul>`;
}

function Stacks({ cluster, act, show }) {
  const stacks = new Map();
  for (const s of cluster.services) {
    const stack = (s.Spec.Labels || {})["com.docker.stack.namespace"];
    if (stack) stacks.set(stack, [...(stacks.get(stack) || []), s]);
  }
  if (!stacks.size) return html`<p class="empty">No stacks. Deploy a Compose file with <code>fleet stack deploy -c compose.yaml NAME</code>.</p>`;
  return [...stacks].map(([stack, services]) => html`<h2 key=${stack}>${stack}</h2><${Services} services=${services} act=${act} show=${show} />`);
}

const Events = ({ events }) => events.length ? html`<ul class="rows">${events.map((e) => html`<li key=${e.key}>
    <span class="dim">${new Date(e.time * 1000).toLocaleTimeString()}</span> <b>${e.Type} ${e.Action}</b> ${((e.Actor || {}).Attributes || {}).name || ((e.Actor || {}).ID || "").slice(0, 12)}</li>`)}</ul>`
  : html`<p class="empty">Nothing has happened since this page was opened.</p>`;

function Modal({ title, close, children }) {
  const ref = useRef();
  useEffect(() => { ref.current.showModal(); }, []);
  return html`<dialog ref=${ref} onClose=${close} aria-label=${title}><h2>${title}</h2>${children}</dialog>`;
}

function Confirm({ action, close, done }) {
  const [fault, setFault] = useState(""), [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(event.target));
    setBusy(true);
    try {
      await action.run(values);
      close();
      done();
    } catch (error) {
      setFault(error.message);
      setBusy(false);
    }
  };
  return html`<${Modal} title=${action.title} close=${close}><form onSubmit=${submit}>
    ${action.text && html`<p>${action.text}</p>`}
    ${(action.fields || []).map((f) => html`<label key=${f.name}>${f.label} <input name=${f.name} type=${f.type || "text"} min=${f.min} required=${f.required} defaultValue=${f.value} /></label>`)}
    ${fault && html`<p class="reason" role="alert">${fault}</p>`}
    <p class="actions"><button type="button" onClick=${close}>Cancel</button><button class="main" disabled=${busy}>${action.verb}</button></p></form><//>`;
}

function Logs({ logs, close }) {
  const [text, setText] = useState([]), [fault, setFault] = useState(""), pre = useRef();
  useEffect(() => {
    const stop = new AbortController();
    let lines = [], due = 0, key = 0;
    followLogs(logs.path, logs.tty, (piece, isError) => {
      lines = [...lines.slice(1 - LINES), { key: key++, piece, isError }];
      due = due || setTimeout(() => { due = 0; setText(lines); }, 100);
    }, stop.signal).catch((error) => { if (!stop.signal.aborted) setFault(error.message); });
    return () => { stop.abort(); clearTimeout(due); };
  }, []);
  useEffect(() => { pre.current.scrollTop = pre.current.scrollHeight; }, [text]);
  return html`<${Modal} title=${logs.title} close=${close}><pre ref=${pre} tabindex="0" role="log">${text.map((l) => html`<span key=${l.key} class=${l.isError ? "err" : ""}>${l.piece}</span>`)}</pre>
    ${fault && html`<p class="reason" role="alert">${fault}</p>`}<p class="actions"><button onClick=${close}>Close</button></p><//>`;
}

const Start = ({ info }) => html`<section class="card start"><h2>No cluster to show here</h2>
  ${info.Swarm && info.Swarm.LocalNodeState === "active" ? html`<p>This host is a worker. Open the dashboard of a manager.</p>`
  : html`<p>Make this host the first manager of a cluster:</p><pre>fleet swarm init</pre>
    <p>On each further host, run the command that this prints:</p><pre>fleet swarm join-token worker</pre>
    <p>This page shows the cluster as soon as there is one.</p>`}</section>`;

function SignIn({ done }) {
  const [fault, setFault] = useState(""), [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await signIn(new FormData(event.target).get("token"));
      done();
    } catch (error) {
      setFault(error.message);
      setBusy(false);
    }
  };
  return html`<section class="card start"><h2>Sign in</h2><form onSubmit=${submit}>
    <p>With a token that an administrator made for you: <code>fleet token create USER</code></p>
    <label>Token <input name="token" type="password" autocomplete="off" required /></label>
    ${fault && html`<p class="reason" role="alert">${fault}</p>`}
    <p class="actions"><button class="main" disabled=${busy}>Sign in</button></p></form></section>`;
}

function App() {
  const [state, setState] = useState(null), [fault, setFault] = useState(""), [events, setEvents] = useState([]);
  const [signedOut, setSignedOut] = useState(false);
  const [view, setView] = useState(VIEWS.find((v) => "#" + v.toLowerCase() === location.hash) || "Cluster");
  const [filter, setFilter] = useState(""), [action, setAction] = useState(null), [logs, setLogs] = useState(null);
  const refresh = useRef(() => {});
  useEffect(() => {
    let busy = false, again = false, due = 0, key = 0;
    const load = async () => {
      if (busy) { again = true; return; }
      busy = true;
      try {
        setState(await readCluster());
        setFault("");
        setSignedOut(false);
      } catch (error) {
        if (isSignedOut(error)) {
          setSignedOut(true);
          setState(null);
          setEvents([]);
        } else setFault(error.message);
      }
      busy = false;
      if (again) { again = false; soon(); }
    };
    const soon = () => { due = due || setTimeout(() => { due = 0; load(); }, SETTLE_MS); };
    refresh.current = soon;
    load();
    const timer = setInterval(() => { if (!document.hidden) load(); }, REFRESH_MS);
    const stop = new AbortController();
    (async () => {
      while (!stop.signal.aborted) {
        try {
          await followEvents((e) => { setEvents((old) => [{ ...e, key: key++ }, ...old].slice(0, EVENTS)); soon(); }, stop.signal);
        } catch { /* the daemon restarts: its state is polled, and events are asked for again */ }
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    })();
    const moved = () => setView(VIEWS.find((v) => "#" + v.toLowerCase() === location.hash) || "Cluster");
    addEventListener("hashchange", moved);
    return () => { clearInterval(timer); stop.abort(); removeEventListener("hashchange", moved); };
  }, []);
  const open = (task) => { setFilter(task.ID); location.hash = "#tasks"; };
  const cluster = state && state.cluster, who = (state && state.who) || {};
  const act = who.Role === "viewer" ? null : setAction, rule = who.Role === "admin" ? setAction : null;
  if (signedOut) return html`<header><h1>fleet</h1></header><main><${SignIn} done=${() => refresh.current()} /></main>`;
  return html`<header><h1>fleet</h1>${cluster && html`<nav aria-label="Views">${VIEWS.map((v) => html`<a key=${v} href=${"#" + v.toLowerCase()}
      aria-current=${v === view ? "page" : undefined}>${v}</a>`)}</nav>`}
    ${who.User && html`<span class="who">${who.User} (${who.Role})${who.Session && html` <button onClick=${() => signOut().catch(() => {}).then(() => refresh.current())}>Sign out</button>`}</span>`}</header>
    <main>${fault && html`<p class="reason" role="alert">${fault}</p>`}
      ${!state && !fault && html`<p class="empty">Reading the cluster…</p>`}
      ${state && !cluster && html`<${Start} info=${state.info} />`}
      ${cluster && view === "Cluster" && html`<${Cluster} cluster=${cluster} act=${rule} open=${open} />`}
      ${cluster && view === "Services" && html`${act && html`<p class="actions"><button class="main" onClick=${() => setAction(createService)}>Create service</button></p>`}
        <${Services} services=${cluster.services} act=${act} show=${setLogs} />`}
      ${cluster && view === "Tasks" && html`<${Tasks} cluster=${cluster} filter=${filter} setFilter=${setFilter} show=${setLogs} />`}
      ${cluster && view === "Stacks" && html`<${Stacks} cluster=${cluster} act=${act} show=${setLogs} />`}
      ${cluster && view === "Events" && html`<${Events} events=${events} />`}</main>
    ${action && html`<${Confirm} action=${action} close=${() => setAction(null)} done=${() => refresh.current()} />`}
    ${logs && html`<${Logs} logs=${logs} close=${() => setLogs(null)} />`}`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
