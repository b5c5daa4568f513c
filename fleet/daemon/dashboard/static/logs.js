// Output of a service or a task as it comes, in a dialog.
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { followLogs } from "./api.js";
import { Modal, html } from "./parts.js";

const LINES = 1000;

const TASK = /^\S*com\.docker\.swarm\.task\.id=(\w+)\S* /;

export function Logs({ cluster, logs, close }) {
  const [text, setText] = useState([]), [fault, setFault] = useState(""), [ended, setEnded] = useState(false), pre = useRef(), stay = useRef(true);
  useEffect(() => {
    const stop = new AbortController();
    let lines = [], due = 0, key = 0;
    followLogs(logs.path, { hasTerminal: logs.tty, detailed: logs.named }, (text, isError) => {
      const of = logs.named ? TASK.exec(text) : null, task = of && cluster.tasks.get(of[1]);
      lines.push({ key: key++, piece: of ? text.slice(of[0].length) : text, isError, of: of && (task ? cluster.taskName(task) : of[1].slice(0, 12)) });
      due = due || setTimeout(() => { due = 0; lines = lines.slice(-LINES); setText(lines.slice()); }, 100);
    }, stop.signal).then(() => setEnded(true), (error) => { if (!stop.signal.aborted) setFault(error.message); });
    return () => { stop.abort(); clearTimeout(due); };
  }, []);
  useEffect(() => { if (stay.current) pre.current.scrollTop = pre.current.scrollHeight; }, [text]);
  // Whoever scrolls up to read is left there; at the end it goes on with what comes.
  const scrolled = () => { stay.current = pre.current.scrollHeight - pre.current.scrollTop - pre.current.clientHeight < 24; };
  return html`<${Modal} title=${logs.title} close=${close}><pre ref=${pre} tabindex="0" role="log" onScroll=${scrolled}>${text.map((l) => html`<span key=${l.key} class=${l.isError ? "err" : ""}>${l.of && html`<span class="dim">${l.of} </span>`}${l.piece}</span>`)}</pre>
    ${!text.length && !fault && html`<p class="dim">${ended ? "There is no output." : "Nothing was written yet."}</p>`}
    ${fault && html`<p class="reason" role="alert">${fault}</p>`}<p class="actions"><button class="main" onClick=${close}>Close</button></p><//>`;
}
