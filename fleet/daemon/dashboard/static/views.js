// What is shown: functions of the cluster. Each part is drawn again only when what it shows has changed (`Keep`).
import { useState } from "./vendor/hooks.js";
import { hasEnded, hasFailed, inOrder, isInTrouble, nodeName, reasonOf, stackOf } from "./cluster.js";
import * as changes from "./changes.js";
import { Badge, Keep, Modal, Rows, Spark, ago, bytes, colour, cpus, html, image, plural, useFilling } from "./parts.js";

const TILES = 60, TASK_PX = 58, EVENT_PX = 52;
const KINDS = { all: () => true, live: (t) => !hasEnded(t), trouble: isInTrouble, ended: hasEnded };

// Cluster -------------------------------------------------------------------------------------------------------------

const Tiles = ({ cluster, tasks, open }) => html`<ul class="tiles">${tasks.slice(0, TILES).map((t) => html`<li key=${t.ID}><button
    class=${"tile " + colour(t.Status.State)} title=${`${cluster.taskName(t)}: ${t.Status.State}`} onClick=${() => open(t)}>${cluster.taskName(t)}</button></li>`)}
  ${tasks.length > TILES && html`<li class="dim">and ${tasks.length - TILES} more</li>`}</ul>`;

function Charts({ node, usage }) {
  const all = (node.Description && node.Description.Resources) || {}, name = nodeName(node);
  if (!usage) return html`<div class="charts awaited"></div>`; // as high as with the figures: nothing moves when they come
  if (!usage.now) return html`<p class="dim">Use: not known yet</p>`;
  const { now, points } = usage, cores = all.NanoCPUs ? `/${all.NanoCPUs / 1e9}` : "";
  const cpu = `${(now.NanoCPUs / 1e9).toFixed(2)}${cores}`, memory = `${(now.MemoryBytes / 2 ** 30).toFixed(1)}/${bytes(all.MemoryBytes || 0)}`;
  const minutes = points.length > 1 ? Math.max(1, Math.round((points[points.length - 1].Time - points[0].Time) / 60)) : 0;
  return html`<div class="charts">
    <figure><figcaption>CPU <b>${cpu}</b> <span class="own">containers ${(now.Containers.NanoCPUs / 1e9).toFixed(2)}</span></figcaption>
      <${Spark} points=${points} all=${(p) => p.NanoCPUs} own=${(p) => p.Containers.NanoCPUs} most=${all.NanoCPUs} label=${`CPU of ${name}, ${minutes} minutes, now ${cpu}`} /></figure>
    <figure><figcaption>Memory <b>${memory}</b> <span class="own">containers ${bytes(now.Containers.MemoryBytes)}</span></figcaption>
      <${Spark} points=${points} all=${(p) => p.MemoryBytes} own=${(p) => p.Containers.MemoryBytes} most=${all.MemoryBytes} label=${`Memory of ${name}, ${minutes} minutes, now ${memory}`} /></figure></div>`;
}

const liveTasks = (cluster, id) => [...cluster.tasksOf(cluster.byNode, id).values()].filter((t) => !hasEnded(t));

function NodeHead({ cluster, node }) {
  const availability = node.Spec.Availability;
  return html`<h2>${nodeName(node)} <${Badge} state=${node.Status.State} />${availability !== "active" && html` <${Badge} state=${availability} />`}</h2>
    <p class="dim">${node.Spec.Role}${node.ManagerStatus && node.ManagerStatus.Leader ? ", leader" : ""} · ${node.Status.Addr} · ${plural(liveTasks(cluster, node.ID).length, "task")}</p>
    ${node.Status.State !== "ready" && node.Status.Message && html`<p class="reason">${node.Status.Message}</p>`}`;
}

function NodeTasks({ cluster, node, act, open }) {
  const named = liveTasks(cluster, node.ID).map((task) => [cluster.taskName(task), task]);
  const tasks = named.sort(([a], [b]) => inOrder(a, b)).map(([, task]) => task);
  const button = (to, label) => html`<button onClick=${() => act(changes.setAvailability(node, to, tasks.length))}>${label}</button>`;
  return html`<${Tiles} cluster=${cluster} tasks=${tasks} open=${open} />
    ${act && html`<p class="actions">${node.Spec.Availability === "active" ? html`${button("drain", "Drain")}${button("pause", "Pause")}` : button("active", "Activate")}</p>`}`;
}

const NodePlace = ({ node }) => html`<section class="card node" key=${node.ID} aria-label=${"node " + nodeName(node)}><h2>${nodeName(node)}</h2></section>`;

/** Tasks and figures change at times of their own: each part is drawn for its own changes. */
const NodeCard = ({ cluster, node, act, open }) => html`<section class="card node" key=${node.ID} aria-label=${"node " + nodeName(node)}>
    <${Keep} deps=${[cluster.versionOf(node.ID)]} of=${() => html`<${NodeHead} cluster=${cluster} node=${node} />`} />
    <${Keep} deps=${[cluster.usage.get(node.ID), node]} of=${() => html`<${Charts} node=${node} usage=${cluster.usage.get(node.ID)} />`} />
    <${Keep} deps=${[cluster.versionOf(node.ID), cluster.namesVersion, act]} of=${() => html`<${NodeTasks} cluster=${cluster} node=${node} act=${act} open=${open} />`} /></section>`;

export function ClusterView({ cluster, act, open }) {
  const waiting = [...cluster.tasksOf(cluster.byNode, "").values()].filter((t) => !hasEnded(t));
  const reasons = [...new Set(waiting.map((t) => t.Status.Err || t.Status.Message).filter(Boolean))];
  const nodes = cluster.sortedNodes(), filled = useFilling(nodes.length), up = nodes.filter((n) => n.Status.State === "ready").length;
  return html`<${Keep} deps=${[cluster.tasksVersion, cluster.namesVersion, nodes.length, up]} of=${() => html`<${Summary} cluster=${cluster} nodes=${nodes.length} up=${up} open=${open} />`} />
    ${waiting.length > 0 && html`<section class="card warn" aria-label="waiting"><h2>Waiting for a node</h2><${Tiles} cluster=${cluster} tasks=${waiting} open=${open} />
      ${reasons.slice(0, 3).map((reason) => html`<p key=${reason}>${reason}</p>`)}</section>`}
    ${!cluster.services.size && !cluster.tasks.size && html`<p>Nothing runs here yet: create a service under <a href="#services">Services</a>, or with <code>fleet service create</code>.</p>`}
    ${cluster.usageFault && html`<p class="dim">Use of resources is not known: ${cluster.usageFault}</p>`}
    <div class="grid">${nodes.map((n, i) => (i < filled ? NodeCard({ cluster, node: n, act, open }) : NodePlace({ node: n })))}</div>`;
}

function Summary({ cluster, nodes, up, open }) {
  let running = 0;
  const trouble = [];
  for (const task of cluster.tasks.values()) {
    if (task.Status.State === "running") running += 1;
    if (isInTrouble(task)) trouble.push(task);
  }
  return html`<p class="summary"><b>${up}/${nodes}</b> nodes ready · <b>${cluster.services.size}</b> ${cluster.services.size === 1 ? "service" : "services"} · <b>${running}</b> ${running === 1 ? "task runs" : "tasks run"}
    ${trouble.length > 0 && html` · <button class="link bad" onClick=${() => open("trouble")}>${trouble.length} in trouble</button>`}</p>`;
}

// Services ------------------------------------------------------------------------------------------------------------

const modeOf = (spec) => Object.keys(spec.Mode || {})[0] === "Global" ? "global" : spec.Mode.GlobalJob ? "global job" : spec.Mode.ReplicatedJob ? "job" : "replicated";

const UPDATES = { updating: "Updating", paused: "Update paused", completed: "Update completed", rollback_started: "Rolling back",
  rollback_paused: "Rollback paused", rollback_completed: "Rolled back" };

/** A rolling update as it happens. */
function Update({ cluster, service, desired }) {
  const status = service.UpdateStatus, state = status.State, { fresh, freshRunning, old, failed } = cluster.updateOf(service);
  const moving = state === "updating" || state === "rollback_started", most = Math.max(1, desired || fresh + old);
  return html`<div class="update" aria-label=${"update of " + service.Spec.Name}>
    <p><b>${UPDATES[state] || state}</b> <${Badge} state=${state} /> <span class="dim">${ago(moving ? status.StartedAt : status.CompletedAt || status.StartedAt)}${moving ? "" : " ago"}</span></p>
    ${state.includes("paused") && status.Message && html`<p class="reason">${status.Message}</p>`}
    ${(moving || state.includes("paused")) && html`<progress max=${most} value=${freshRunning} aria-label=${"updated tasks of " + service.Spec.Name}></progress>
      <p class="dim"><b>${freshRunning}</b> of ${most} updated · ${fresh - freshRunning} starting · ${old} of before${failed > 0 && html` · <span class="failed">${failed} failed</span>`}</p>`}</div>`;
}

function ServiceCard({ cluster, service, act, show, go }) {
  const status = service.ServiceStatus || {}, spec = service.Spec, title = spec.Name, job = modeOf(spec).endsWith("job");
  const done = job ? status.CompletedTasks || 0 : status.RunningTasks || 0, use = cluster.useOf(service.ID), state = (service.UpdateStatus || {}).State;
  const sign = use.whole ? "" : "≥ ", reason = done < status.DesiredTasks ? cluster.whyNot(service.ID) : "";
  return html`<section class="card" aria-label=${"service " + title}>
    <h2><a href=${"#services/" + encodeURIComponent(service.ID)}>${title}</a> <span class=${"badge " + (done >= status.DesiredTasks ? "good" : "wait")}>${done}/${status.DesiredTasks}</span></h2>
    ${!(state && state !== "completed") && html`<progress max=${status.DesiredTasks || 1} value=${done} aria-label=${"running tasks of " + title}></progress>`}
    <p class="dim">${modeOf(spec)} · ${image(spec)}${((service.Endpoint || {}).Ports || []).map((p) => ` · ${p.PublishedPort}→${p.TargetPort}/${p.Protocol}`)}
      ${use.known > 0 && html` · <span class="nowrap">${sign}${cpus(use.cpu)}, ${bytes(use.memory)}</span>`}</p>
    ${reason && html`<p class="reason clipped" title=${reason}>${reason}</p>`}
    ${state && html`<${Update} cluster=${cluster} service=${service} desired=${status.DesiredTasks} />`}
    <p class="actions">
      ${act && spec.Mode.Replicated && html`<button onClick=${() => act(changes.scale(service))}>Scale</button>`}
      ${act && html`<button onClick=${() => act(changes.update(service))}>Update</button>`}
      ${act && service.PreviousSpec && html`<button onClick=${() => act(changes.rollback(service))}>Roll back</button>`}
      <button onClick=${() => show({ title: `Logs of ${title}`, path: `/services/${encodeURIComponent(service.ID)}/logs`, tty: !!(spec.TaskTemplate.ContainerSpec || {}).TTY, named: true })}>Logs</button>
      ${go && html`<button onClick=${go}>Tasks</button>`}
    </p></section>`;
}

export function Services({ cluster, services, act, show }) {
  const filled = useFilling(services.length);
  return html`<div class="grid">${services.slice(0, filled).map((s) => html`<${Keep} key=${s.ID} deps=${[cluster.versionOf(s.ID), cluster.usageVersion, act]} of=${() => html`<${ServiceCard}
    cluster=${cluster} service=${s} act=${act} show=${show} go=${() => { location.hash = "#services/" + encodeURIComponent(s.ID); }} />`} />`)}</div>`;
}

export function ServicesView({ cluster, act, show }) {
  const services = cluster.sortedServices();
  return html`${act && html`<p class="actions"><button class="main" onClick=${() => act(changes.createService)}>Create service</button></p>`}
    ${!services.length ? html`<p class="empty">No services yet. Create one here, or with <code>fleet service create</code>.</p>`
    : html`<${Services} cluster=${cluster} services=${services} act=${act} show=${show} />`}`;
}

/** One service with the history of its tasks. */
export function ServiceView({ cluster, id, act, show, open }) {
  const service = cluster.services.get(id);
  if (!service) return html`<p class="empty">This service is no more. <a href="#services">All services</a></p>`;
  const tasks = [...cluster.tasksOf(cluster.byService, id).values()].sort((a, b) => (a.Status.Timestamp < b.Status.Timestamp ? 1 : -1));
  return html`<p><a href="#services">← Services</a></p>
    <${ServiceCard} cluster=${cluster} service=${service} act=${act} show=${show} />
    ${act && html`<p class="actions"><button onClick=${() => act(changes.restart(service))}>Restart</button> <button class="danger" onClick=${() => act(changes.remove(service))}>Remove</button></p>`}
    <h2>Tasks, the newest first</h2><${TaskRows} cluster=${cluster} tasks=${tasks} open=${open} service=${service} />`;
}

export function StacksView({ cluster, act, show }) {
  const stacks = new Map();
  for (const s of cluster.sortedServices()) if (stackOf(s)) stacks.set(stackOf(s), [...(stacks.get(stackOf(s)) || []), s]);
  if (!stacks.size) return html`<p class="empty">No stacks. Deploy a Compose file with <code>fleet stack deploy -c compose.yaml NAME</code>.</p>`;
  return [...stacks].sort(([a], [b]) => inOrder(a, b)).map(([stack, services]) => {
    const whole = services.filter((s) => (s.ServiceStatus || {}).RunningTasks >= (s.ServiceStatus || {}).DesiredTasks).length;
    return html`<section key=${stack} class="stack" aria-label=${"stack " + stack}><h2>${stack} <span class=${"badge " + (whole === services.length ? "good" : "wait")}>${whole}/${services.length} services whole</span></h2>
      <${Services} cluster=${cluster} services=${services} act=${act} show=${show} /></section>`;
  });
}

// Tasks ---------------------------------------------------------------------------------------------------------------

function TaskRow({ cluster, task, open, service }) {
  const use = task.Status.State === "running" ? cluster.taskUse.get(task.ID) : null, reason = reasonOf(task);
  const age = service && service.UpdateStatus && !hasEnded(task) && cluster.isOld(task, service) ? " · of before the update" : "";
  return html`<button class="row" onClick=${() => open(task)}><span class="line"><b>${cluster.taskName(task)}</b> <${Badge} state=${task.Status.State} />
      ${use && html`<span class="dim use">${use.NanoCPUs === null ? "" : cpus(use.NanoCPUs) + " · "}${bytes(use.MemoryBytes)}</span>`}</span>
    <span class="line dim">${cluster.nodeName(task.NodeID)} · ${ago(task.Status.Timestamp)} ago${age}${reason && html` · <span class=${hasFailed(task) ? "failed" : ""}>${reason}</span>`}</span></button>`;
}

function TaskRows({ cluster, tasks, open, service }) {
  return tasks.length ? html`<${Rows} items=${tasks} height=${TASK_PX} label="tasks" row=${(t) => html`<${Keep} deps=${[t, cluster.taskUse.get(t.ID), cluster.namesVersion, service && service.specDigest, Math.floor(Date.now() / 5000)]}
    of=${() => html`<${TaskRow} cluster=${cluster} task=${t} open=${open} service=${service} />`} />`} />` : html`<p class="empty">No tasks.</p>`;
}

export function TasksView({ cluster, filter, setFilter, kind, setKind, open }) {
  const wanted = filter.toLowerCase(), fits = KINDS[kind];
  const found = cluster.newestTasks().filter((t) => fits(t) && (!wanted
    || `${cluster.taskName(t)} ${t.ID} ${cluster.nodeName(t.NodeID)} ${t.Status.State} ${t.Status.Err || ""}`.toLowerCase().includes(wanted)));
  return html`<div class="filters"><label class="filter">Filter <input type="search" id="filter" value=${filter} onInput=${(e) => setFilter(e.target.value)} placeholder="service, node, state, reason, id" /></label>
      <div class="choices" role="group" aria-label="Which tasks">${Object.keys(KINDS).map((k) => html`<button key=${k} aria-pressed=${k === kind} onClick=${() => setKind(k)}>${k}</button>`)}</div></div>
    <p class="dim">${plural(found.length, "task")}</p><${TaskRows} cluster=${cluster} tasks=${found} open=${open} />`;
}

export function TaskDialog({ cluster, id, close, show }) {
  const task = cluster.tasks.get(id);
  if (!task) return html`<${Modal} title="Task" close=${close}><p>This task is no more.</p><p class="actions"><button onClick=${close}>Close</button></p><//>`;
  const container = task.Status.ContainerStatus || {}, use = task.Status.State === "running" && cluster.taskUse.get(id), name = cluster.taskName(task);
  const facts = [["State", html`<${Badge} state=${task.Status.State} /> since ${ago(task.Status.Timestamp)}, wanted ${task.DesiredState}`],
    ["Reason", reasonOf(task)], ["Says", task.Status.Message], ["Node", cluster.nodeName(task.NodeID)], ["Image", ((task.Spec || {}).ContainerSpec || {}).Image],
    ["Uses", use && `${use.NanoCPUs === null ? "" : cpus(use.NanoCPUs) + ", "}${bytes(use.MemoryBytes)}`], ["Exit code", hasEnded(task) && container.ContainerID ? String(container.ExitCode || 0) : ""],
    ["Created", `${ago(task.CreatedAt)} ago`], ["Task", task.ID], ["Container", container.ContainerID]];
  return html`<${Modal} title=${name} close=${close}><dl>${facts.filter(([, fact]) => fact).map(([label, fact]) => html`<dt key=${label}>${label}</dt><dd>${fact}</dd>`)}</dl>
    <p class="actions"><button onClick=${() => show({ title: `Logs of ${name}`, path: `/tasks/${encodeURIComponent(id)}/logs`, tty: !!((task.Spec || {}).ContainerSpec || {}).TTY })}>Logs</button>
      ${task.ServiceID && html`<button onClick=${() => { close(); location.hash = "#services/" + encodeURIComponent(task.ServiceID); }}>Service</button>`}
      <button class="main" onClick=${close}>Close</button></p><//>`;
}

// Events --------------------------------------------------------------------------------------------------------------

function details(event) {
  const all = (event.Actor || {}).Attributes || {}, told = [];
  for (const [key, value] of Object.entries(all)) {
    if (key.endsWith(".old")) told.push(`${key.slice(0, -4)} ${value} → ${all[key.slice(0, -4) + ".new"]}`);
    else if (["reason", "held", "exitCode", "for", "node"].includes(key)) told.push(`${key} ${value}`);
  }
  return told.join(", ");
}

export const EventsView = ({ cluster }) => html`<p class="dim">Of the cluster, and of this host's containers.</p>${cluster.events.length
  ? html`<${Rows} items=${cluster.events} height=${EVENT_PX} label="events" row=${(e) => html`<div class="row"><span class="line"><b>${e.Type} ${e.Action}</b> ${((e.Actor || {}).Attributes || {}).name || ((e.Actor || {}).ID || "").slice(0, 12)}</span>
      <span class="line dim">${new Date(e.time * 1000).toLocaleTimeString()}${details(e) && ` · ${details(e)}`}</span></div>`} />`
  : html`<p class="empty">Nothing has happened for a while.</p>`}`;
