// Small pieces that several views share.
import { Component, h } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);

export const colour = (state) =>
  state === "running" || state === "ready" || state === "active" || state === "complete" || state === "completed" ? "good"
  : state === "failed" || state === "rejected" || state === "orphaned" || state === "down" || state === "paused" || state === "rollback_paused" ? "bad"
  : state === "shutdown" || state === "remove" || state === "rollback_completed" ? "off" : "wait";

export const ago = (text) => {
  const s = Math.max(0, Math.round((Date.now() - Date.parse(text)) / 1000));
  return !Number.isFinite(s) ? "" : s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
};
export const bytes = (size) => size < 1024 ? `${size} B` : size < 1e3 * 2 ** 20 ? `${Math.max(0.1, size / 2 ** 20).toFixed(size < 10 * 2 ** 20 ? 1 : 0)} MiB` : `${(size / 2 ** 30).toFixed(1)} GiB`;
export const cpus = (nano) => `${(nano / 1e9).toFixed(2)} CPU`;
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
export const image = (spec) => ((spec.TaskTemplate.ContainerSpec || {}).Image || "").replace(/@sha256:.*/, "");

export const Badge = ({ state }) => html`<span class=${"badge " + colour(state)}>${String(state).replaceAll("_", " ")}</span>`;

/** Draws `of()` again only when something in `deps` is another: with thousands of tasks an event draws what it is about. */
export class Keep extends Component {
  shouldComponentUpdate(next) {
    return next.deps.length !== this.props.deps.length || next.deps.some((each, i) => each !== this.props.deps[i]);
  }

  render({ of }) {
    return of();
  }
}

const CARD_PX = [312, 250], FILLED_AT_ONCE = 48;
const idle = window.requestIdleCallback || setTimeout;

/** How many of `count` cards are drawn: as many as fit into the window at once, the others when those are painted and the browser has nothing else to do. */
export function useFilling(count) {
  const [filled, fill] = useState(() => Math.max(1, Math.floor(Math.min(innerWidth, 1400) / CARD_PX[0])) * Math.ceil(innerHeight / CARD_PX[1]));
  useEffect(() => {
    if (filled >= count) return undefined;
    let over = false;
    requestAnimationFrame(() => setTimeout(() => idle(() => { if (!over) fill(filled + FILLED_AT_ONCE); })));
    return () => { over = true; };
  }, [filled, filled >= count]);
  return filled;
}

/** Many rows of one height, of which only those near the window are in the page. `row(item)` fills a list item. */
export function Rows({ items, height, row, label }) {
  const list = useRef(), [range, setRange] = useState([0, 30]);
  useEffect(() => {
    let due = 0;
    const look = () => {
      due = 0;
      if (!list.current) return;
      const top = -list.current.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor(top / height) - 10), last = Math.max(0, Math.ceil((top + innerHeight) / height) + 10);
      setRange((old) => (old[0] === first && old[1] === last ? old : [first, last]));
    };
    const soon = () => { due = due || requestAnimationFrame(look); };
    look();
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    return () => { removeEventListener("scroll", soon); removeEventListener("resize", soon); cancelAnimationFrame(due); };
  }, [height, items.length]);
  const first = Math.min(range[0], Math.max(0, items.length - 1));
  return html`<ul class="rows" ref=${list} aria-label=${label} style=${{ height: `${items.length * height}px` }}>
    ${items.slice(first, range[1]).map((item, i) => html`<li key=${item.key || item.ID} aria-setsize=${items.length} aria-posinset=${first + i + 1}
      style=${{ top: `${(first + i) * height}px`, height: `${height}px` }}>${row(item)}</li>`)}</ul>`;
}

/** A chart of a few minutes: `all` and `own` are functions of a point, `most` is what the full height means. */
export function Spark({ points, all, own, most, label }) {
  const W = 1000, H = 100, DRAWN = 90;
  if (points.length < 2 || !most) return html`<svg class="spark" viewBox="0 0 ${W} ${H}" role="img" aria-label=${label}></svg>`;
  const step = Math.ceil(points.length / DRAWN), end = points[points.length - 1].Time, span = Math.max(300, end - points[0].Time);
  const drawn = points.filter((_, i) => (points.length - 1 - i) % step === 0);
  const xs = drawn.map((p) => Math.round(W - ((end - p.Time) / span) * W));
  const line = (of) => "M" + drawn.map((p, i) => `${xs[i]} ${Math.round(H - 3 - Math.min(1, of(p) / most) * (H - 6))}`).join("L");
  const whole = line(all);
  return html`<svg class="spark" viewBox="0 0 ${W} ${H}" preserveAspectRatio="none" role="img" aria-label=${label}>
    <path class="area" d=${`${whole}L${W} ${H}L${xs[0]} ${H}Z`} /><path class="all" d=${whole} /><path class="own" d=${line(own)} /></svg>`;
}

export function Modal({ title, close, children }) {
  const ref = useRef();
  useEffect(() => { ref.current.showModal(); }, []);
  return html`<dialog ref=${ref} onClose=${close} aria-label=${title}><h2>${title}</h2>${children}</dialog>`;
}

/** Asks before anything is changed. `action`: title, text, verb, fields and what to `run` with their values. */
export function Confirm({ action, close, done }) {
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
    ${(action.fields || []).map((f) => html`<label key=${f.name}>${f.label} ${f.rows
      ? html`<textarea name=${f.name} rows=${f.rows} placeholder=${f.hint}></textarea>`
      : html`<input name=${f.name} type=${f.type || "text"} min=${f.min} required=${f.required} defaultValue=${f.value} placeholder=${f.hint} />`}</label>`)}
    ${fault && html`<p class="reason" role="alert">${fault}</p>`}
    <p class="actions"><button type="button" onClick=${close}>Cancel</button><button class=${action.danger ? "danger" : "main"} disabled=${busy}>${action.verb}</button></p></form><//>`;
}
