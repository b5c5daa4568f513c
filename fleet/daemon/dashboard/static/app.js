// The page: the cluster is kept by the manager's stream of changes (`cluster.js`), views are functions of it (`views.js`).
import { render } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { dropBegun, hasToken, isSignedOut, read, signIn, signOut, stale, takeToken } from "./api.js";
import { Cluster, keepCluster, keepEvents, keepUsage } from "./cluster.js";
import { Logs } from "./logs.js";
import { Confirm, Modal, html } from "./parts.js";
import { ClusterView, EventsView, ServiceView, ServicesView, StacksView, TaskDialog, TasksView } from "./views.js";

const VIEWS = ["Cluster", "Services", "Tasks", "Stacks", "Events"];
const WHO_MS = 10_000;

const isManager = (info) => !!info.Swarm && info.Swarm.LocalNodeState === "active" && info.Swarm.ControlAvailable;

const Start = ({ info }) => html`<section class="card start"><h2>No cluster to show here</h2>
  ${info.Swarm && info.Swarm.LocalNodeState === "active" ? html`<p>This host is a worker. Open the dashboard of a manager:</p>
      <ul>${(info.Swarm.RemoteManagers || []).map((m) => html`<li key=${m.NodeID}>${m.Addr.replace(/:\d+$/, "")}</li>`)}</ul>`
  : info.Swarm && info.Swarm.LocalNodeState === "locked" ? html`<p>This manager is locked. Unlock it there:</p><pre>fleet swarm unlock</pre>`
  : html`<p>Make this host the first manager of a cluster:</p><pre>fleet swarm init</pre>
    <p>On each further host, run the command that this prints:</p><pre>fleet swarm join-token worker</pre>
    <p>Then run something:</p><pre>fleet service create --name web --replicas 3 --publish 8080:80 nginx</pre>
    <p>This page shows the cluster as soon as there is one.</p>`}</section>`;

function SignIn({ done, refusal }) {
  const [fault, setFault] = useState(refusal), [busy, setBusy] = useState(false);
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
    <p>With the link that <code>fleet dashboard</code> prints, or with a token that an administrator made for you: <code>fleet token create USER</code></p>
    <label>Token <input name="token" type="password" autocomplete="off" required /></label>
    ${fault && html`<p class="reason" role="alert">${fault}</p>`}
    <p class="actions"><button class="main" disabled=${busy}>Sign in</button></p></form></section>`;
}

const Help = ({ close }) => html`<${Modal} title="Keys" close=${close}><dl>${[...VIEWS.map((v, i) => [String(i + 1), v]), ["/", "Filter tasks"], ["?", "This"], ["Esc", "Close a dialog"]]
  .map(([key, what]) => html`<dt key=${key}><kbd>${key}</kbd></dt><dd>${what}</dd>`)}</dl><p class="actions"><button class="main" onClick=${close}>Close</button></p><//>`;

function place() {
  const [name, id] = location.hash.slice(1).split("/");
  return { view: VIEWS.find((v) => v.toLowerCase() === name) || "Cluster", id: id ? decodeURIComponent(id) : "" };
}

/** Who looks at which host, and its cluster while it manages one: a host may join or leave while the page is open. */
function useHost() {
  const [, draw] = useState(0), [host, setHost] = useState(null), [faults, setFaults] = useState({}), [signedOut, setSignedOut] = useState(false);
  const cluster = useRef(null), again = useRef(() => {});
  if (!cluster.current) cluster.current = new Cluster(() => draw((n) => n + 1));
  useEffect(() => {
    let keeping = null;
    const stop = () => {
      if (!keeping) return;
      keeping.abort();
      keeping = null;
      cluster.current.forget();
    };
    const said = (of, error, refusal = "") => {
      if (error && isSignedOut(error)) { setSignedOut((old) => ({ refusal: refusal || (old && old.refusal) || "" })); setHost(null); setFaults({}); stop(); return; }
      setFaults((old) => ({ ...old, [of]: error ? error.message : "" }));
    };
    const look = async () => {
      const refusal = await takeToken().then(() => "", (error) => error.message); // this browser may be in already
      try {
        const [info, who] = await Promise.all([read("/info"), read("/fleet/v1/whoami")]);
        setHost((old) => (JSON.stringify(old) === JSON.stringify({ info, who }) ? old : { info, who }));
        setSignedOut(false);
        said("host", null);
        if (!isManager(info)) { stop(); said("cluster", null); }
        else if (!keeping) {
          keeping = new AbortController();
          keepCluster(cluster.current, keeping.signal, (error) => said("cluster", error));
          keepUsage(cluster.current, keeping.signal);
        }
      } catch (error) { said("host", error, refusal); }
      dropBegun();
    };
    again.current = look;
    look();
    const timer = setInterval(() => { if (!document.hidden) look(); }, WHO_MS);
    return () => { clearInterval(timer); stop(); };
  }, []);
  return { cluster: cluster.current, host, fault: faults.host || faults.cluster, signedOut, look: () => again.current() };
}

function focusFilter() {
  const filter = document.getElementById("filter");
  if (filter) { filter.focus(); return; }
  location.hash = "#tasks";
  requestAnimationFrame(() => requestAnimationFrame(() => { const shown = document.getElementById("filter"); if (shown) shown.focus(); }));
}

function useKeys(focusFilter, help) {
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog") || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
      const view = VIEWS[Number(event.key) - 1];
      if (view) location.hash = "#" + view.toLowerCase();
      else if (event.key === "/") { event.preventDefault(); focusFilter(); }
      else if (event.key === "?") help();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

function App() {
  const { cluster, host, fault, signedOut, look } = useHost();
  const [{ view, id }, setPlace] = useState(place()), [dialog, setDialog] = useState(null);
  const [filter, setFilter] = useState(""), [kind, setKind] = useState("all");
  const close = () => setDialog(null), show = (logs) => setDialog({ logs }), ask = useRef((action) => setDialog({ action }));
  const open = useRef((what) => {
    if (typeof what !== "string") { setDialog({ task: what.ID }); return; }
    setKind(what);
    location.hash = "#tasks";
  });
  useEffect(() => {
    const moved = () => { if (hasToken()) look(); setPlace(place()); scrollTo(0, 0); };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const manages = !!host && isManager(host.info), wantsEvents = manages && view === "Events";
  useEffect(() => { // a browser has six connections for all tabs of a host: one more only where it is looked at
    if (!wantsEvents) return undefined;
    const stop = new AbortController();
    keepEvents(cluster, stop.signal);
    return () => stop.abort();
  }, [wantsEvents]);
  useKeys(focusFilter, () => setDialog({ help: true }));
  if (signedOut) return html`<header><h1>fleet</h1></header><main><${SignIn} key=${signedOut.refusal} done=${look} refusal=${signedOut.refusal} /></main>`;
  const who = (host && host.who) || {};
  const act = who.Role === "viewer" ? null : ask.current, rule = who.Role === "admin" ? ask.current : null;
  const shared = { cluster, show, open: open.current };
  return html`<header><h1>fleet</h1>${manages && html`<nav aria-label="Views">${VIEWS.map((v) => html`<a key=${v} href=${"#" + v.toLowerCase()}
      aria-current=${v === view ? "page" : undefined}>${v}</a>`)}</nav>`}
    <span class="who">${who.User && html`${who.User} (${who.Role}) `}${who.Session && html`<button onClick=${() => signOut().catch(() => {}).then(look)}>Sign out</button> `}<button aria-label="Keys" onClick=${() => setDialog({ help: true })}>?</button></span></header>
    <main>${fault && html`<p class="reason" role="alert">${fault}</p>`}
      ${manages && stale.seconds !== null && html`<p class="card warn" role="alert">The managers have no majority: this is as it was ${stale.seconds} s ago, and nothing can be changed until most of them are back.</p>`}
      ${!fault && (!host || (manages && !cluster.synced)) && html`<p class="empty">Reading the cluster…</p>`}
      ${host && !manages && html`<${Start} info=${host.info} />`}
      ${manages && cluster.synced && (view === "Cluster" ? html`<${ClusterView} ...${shared} act=${rule} />`
        : view === "Services" ? (id ? html`<${ServiceView} ...${shared} id=${id} act=${act} />` : html`<${ServicesView} ...${shared} act=${act} />`)
        : view === "Tasks" ? html`<${TasksView} ...${shared} filter=${filter} setFilter=${setFilter} kind=${kind} setKind=${setKind} />`
        : view === "Stacks" ? html`<${StacksView} ...${shared} act=${act} />`
        : html`<${EventsView} ...${shared} />`)}</main>
    ${dialog && dialog.action && html`<${Confirm} action=${dialog.action} close=${close} done=${look} />`}
    ${dialog && dialog.logs && html`<${Logs} cluster=${cluster} logs=${dialog.logs} close=${close} />`}
    ${dialog && dialog.task && html`<${TaskDialog} cluster=${cluster} id=${dialog.task} close=${close} show=${show} />`}
    ${dialog && dialog.help && html`<${Help} close=${close} />`}`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
