// The cluster as the page knows it: kept by the manager's stream of changes, so that an event costs what changed and not the whole.
import { followLines, isMissing, read, stale } from "./api.js";

const ENDED = new Set(["complete", "shutdown", "failed", "rejected", "orphaned", "remove"]);
const FAILED = new Set(["failed", "rejected", "orphaned"]);
const RECENT_MS = 600_000, POINTS = 240, WINDOW_S = 1800, POLL_MS = 5000, AGAIN_MS = 2000, FIRST_EVENTS_S = 3600, EVENTS = 500;

/** Compares names: n2 comes before n10. */
export const inOrder = new Intl.Collator(undefined, { numeric: true }).compare;
export const hasEnded = (task) => ENDED.has(task.Status.State);
export const hasFailed = (task) => FAILED.has(task.Status.State);
export const nodeName = (node) => (node.Description && node.Description.Hostname) || node.ID;
export const stackOf = (service) => (service.Spec.Labels || {})["com.docker.stack.namespace"] || "";

const nameOf = (object) => (object.Spec && object.Spec.Name) || nodeName(object);

/** Why a task is as it is, in the manager's words. */
export function reasonOf(task) {
  const status = task.Status, code = (status.ContainerStatus || {}).ExitCode;
  if (status.Err) return status.Err;
  return status.State === "failed" && code ? `exit code ${code}` : "";
}

/** Wanted and waiting with a reason, or failed a short time ago. */
export const isInTrouble = (task) =>
  hasEnded(task) ? hasFailed(task) && Date.now() - Date.parse(task.Status.Timestamp) < RECENT_MS : task.Status.State !== "running" && !!task.Status.Err;

/**
 * Tables with indexes, and a number for each node, service and table that grows with every change of what is shown of it: views are
 * drawn again where theirs has grown; `namesVersion` is of what stands in many places. `changed` is called at most once a frame.
 */
export class Cluster {
  constructor(changed) {
    this.changed = changed;
    this.due = 0;
    this.eventKey = 0;
    this.usageVersion = 0;
    this.shown = new Promise((resolve) => { this.isShown = resolve; }); // kept when there is something to see
    this.forget();
  }

  /** Everything: somebody else may look next. */
  forget() {
    this.events = [];
    this.usage = new Map();
    this.taskUse = new Map();
    this.usageFault = "";
    this.synced = false;
    stale.seconds = null;
    this.clear();
  }

  clear() {
    this.nodes = new Map();
    this.services = new Map();
    this.tasks = new Map();
    this.versions = new Map();
    this.byNode = new Map();
    this.byService = new Map();
    this.tasksVersion = 0;
    this.namesVersion = 0;
  }

  tell() {
    this.due = this.due || requestAnimationFrame(() => { this.due = 0; this.changed(); if (this.synced) setTimeout(this.isShown); });
  }

  versionOf(id) { return this.versions.get(id) || 0; }
  grow(id) { if (id !== undefined) this.versions.set(id, this.versionOf(id) + 1); }
  tasksOf(index, id) { return index.get(id) || new Map(); }
  nodeName(id) { const node = this.nodes.get(id); return node ? nodeName(node) : id ? id.slice(0, 12) : "–"; }
  serviceName(id) { const service = this.services.get(id); return service ? service.Spec.Name : (id || "").slice(0, 12); }
  taskName(task) {
    const mode = task.JobIteration ? ((this.services.get(task.ServiceID) || {}).Spec || {}).Mode || {} : {};
    const place = mode.ReplicatedJob ? (task.Slot || 0) + 1 : task.Slot; // the API counts slots of jobs from 0
    return `${this.serviceName(task.ServiceID) || task.ID.slice(0, 12)}.${place || this.nodeName(task.NodeID) || task.ID.slice(0, 6)}`;
  }
  sortedNodes() { return [...this.nodes.values()].sort((a, b) => inOrder(nodeName(a), nodeName(b))); }
  sortedServices() { return [...this.services.values()].sort((a, b) => inOrder(a.Spec.Name, b.Spec.Name)); }
  newestTasks() {
    if (this.sortedAt !== this.tasksVersion) {
      this.sorted = [...this.tasks.values()].sort((a, b) => (a.Status.Timestamp < b.Status.Timestamp ? 1 : -1));
      this.sortedAt = this.tasksVersion;
    }
    return this.sorted;
  }

  /** One line of the stream. */
  apply(line) {
    if (line.Type === "reset") { this.clear(); this.synced = false; return; }
    if (line.Type === "synced") { this.synced = true; this.tell(); return; }
    const table = line.Type === "node" ? this.nodes : line.Type === "service" ? this.services : line.Type === "task" ? this.tasks : null;
    if (!table) return;
    const old = table.get(line.ID), now = line.Action === "put" ? Object.assign(line.Object, { specVersion: line.SpecVersion || 0, specDigest: line.SpecDigest }) : undefined;
    if (now) table.set(line.ID, now); else table.delete(line.ID);
    this.grow(line.ID);
    if (line.Type === "task") {
      this.tasksVersion += 1;
      this.index(this.byNode, old && old.NodeID || "", now && now.NodeID || "", old, now);
      this.index(this.byService, old && old.ServiceID || "", now && now.ServiceID || "", old, now);
    } else if (!old || !now || nameOf(old) !== nameOf(now)) this.namesVersion += 1; // a service is told with each of its tasks' changes
    if (this.synced) this.tell();
  }

  index(index, before, after, old, now) {
    if (old) { const found = index.get(before); if (found) found.delete(old.ID); this.grow(before); }
    if (now) {
      if (!index.has(after)) index.set(after, new Map());
      index.get(after).set(now.ID, now);
      if (before !== after || !old) this.grow(after);
    }
  }

  /** An answer of `/fleet/v1/usage`. */
  applyUsage(answer) {
    for (const node of answer.Nodes) {
      const known = this.usage.get(node.NodeID) || { points: [], now: null };
      const after = known.points.length ? known.points[known.points.length - 1].Time : 0;
      const points = [...known.points, ...(node.History || []).filter((point) => point.Time > after)];
      this.usage.set(node.NodeID, { now: node.Now, points: points.slice(-POINTS).filter((point) => point.Time > Date.now() / 1000 - WINDOW_S) });
    }
    for (const id of this.usage.keys()) if (!answer.Nodes.some((node) => node.NodeID === id)) this.usage.delete(id);
    this.taskUse = new Map((answer.Tasks || []).map((each) => [each.ID, each]));
    this.usageFault = "";
    this.usageVersion += 1;
    this.tell();
  }

  lastPoint() {
    return Math.max(0, ...[...this.usage.values()].map((each) => (each.points.length ? each.points[each.points.length - 1].Time : 0)));
  }

  addEvent(event) {
    this.events.unshift({ ...event, key: this.eventKey++ });
    if (this.events.length > EVENTS) this.events.length = EVENTS;
    this.tell();
  }

  /** What the tasks of a service use together; `whole` says whether all that run are known. */
  useOf(serviceId) {
    let cpu = 0, memory = 0, known = 0, running = 0;
    for (const task of this.tasksOf(this.byService, serviceId).values()) {
      if (task.Status.State !== "running") continue;
      running += 1;
      const use = this.taskUse.get(task.ID);
      if (use) { known += 1; cpu += use.NanoCPUs || 0; memory += use.MemoryBytes; }
    }
    return { cpu, memory, known, whole: known === running };
  }

  /** The newest reason among a service's tasks that are in trouble. */
  whyNot(serviceId) {
    const found = [...this.tasksOf(this.byService, serviceId).values()].filter((t) => isInTrouble(t) && reasonOf(t));
    return found.length ? reasonOf(found.reduce((a, b) => (a.Status.Timestamp > b.Status.Timestamp ? a : b))) : "";
  }

  /** Whether a task is as its service was before the update. */
  isOld(task, service) {
    return task.specVersion < service.specVersion && task.specDigest !== service.specDigest;
  }

  /** Old and new tasks of a service that is being updated. */
  updateOf(service) {
    const tasks = [...this.tasksOf(this.byService, service.ID).values()];
    const live = tasks.filter((t) => !hasEnded(t) && t.DesiredState !== "shutdown" && t.DesiredState !== "remove");
    const fresh = live.filter((t) => !this.isOld(t, service));
    return {
      fresh: fresh.length, freshRunning: fresh.filter((t) => t.Status.State === "running").length, old: live.length - fresh.length,
      failed: tasks.filter((t) => t.specVersion >= service.specVersion && hasFailed(t)).length,
    };
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Keeps `cluster` until `signal` is aborted; `said(fault)` when the stream is broken, and with nothing when it is back. */
export async function keepCluster(cluster, signal, said) {
  while (!signal.aborted) {
    try {
      await followLines("/fleet/v1/watch", (line) => { if (line.Type === "synced") said(null); cluster.apply(line); }, signal);
    } catch (error) {
      if (signal.aborted) return;
      said(error);
    }
    await pause(AGAIN_MS);
  }
}

/** Figures of nodes and tasks, every few seconds while the page is seen. */
export async function keepUsage(cluster, signal) {
  await cluster.shown; // half an hour of every node is much more than what is looked at first
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        cluster.applyUsage(await read(`/fleet/v1/usage?tasks=1&since=${cluster.lastPoint()}`));
      } catch (error) {
        cluster.usageFault = error.message;
        cluster.tell();
        if (error.status === 403 || isMissing(error)) return; // not for this user, or a manager of before
      }
    }
    await pause(POLL_MS);
  }
}

/** Events from a while ago on. */
export async function keepEvents(cluster, signal) {
  cluster.events = [];
  let since = Date.now() / 1000 - FIRST_EVENTS_S;
  while (!signal.aborted) {
    try {
      await followLines(`/events?since=${since.toFixed(6)}`, (event) => {
        since = event.timeNano / 1e9 + 1e-6;
        cluster.addEvent(event);
      }, signal);
    } catch { /* the daemon restarts: asked again */ }
    await pause(AGAIN_MS);
  }
}
