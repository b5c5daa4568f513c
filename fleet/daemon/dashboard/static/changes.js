// What the page changes in the cluster: each is described here, asked by a dialog, and sent with the version that was read.
import { change, read } from "./api.js";
import { nodeName } from "./cluster.js";
import { image, plural } from "./parts.js";

const servicePath = (id) => `/services/${encodeURIComponent(id)}`;

async function updateService(id, edit, query = "") {
  const path = servicePath(id), now = await read(path), spec = structuredClone(now.Spec);
  edit(spec);
  await change(`${path}/update?version=${now.Version.Index}${query}`, spec);
}

export const scale = (service) => ({
  title: `Scale ${service.Spec.Name}`, verb: "Scale",
  fields: [{ name: "replicas", label: "Replicas", type: "number", min: 0, value: service.Spec.Mode.Replicated.Replicas, required: true }],
  run: (v) => updateService(service.ID, (spec) => { spec.Mode.Replicated.Replicas = Number(v.replicas); }),
});

export const update = (service) => ({
  title: `Update ${service.Spec.Name}`, verb: "Update", text: "Tasks are replaced as its update settings say.",
  fields: [{ name: "image", label: "Image", value: image(service.Spec), required: true }],
  run: (v) => updateService(service.ID, (spec) => { spec.TaskTemplate.ContainerSpec.Image = v.image; }),
});

export const restart = (service) => ({
  title: `Restart ${service.Spec.Name}?`, verb: "Restart", text: "All its tasks are replaced with the same settings, as its update settings say.",
  run: () => updateService(service.ID, (spec) => { spec.TaskTemplate.ForceUpdate = (spec.TaskTemplate.ForceUpdate || 0) + 1; }),
});

export const rollback = (service) => ({
  title: `Roll ${service.Spec.Name} back?`, verb: "Roll back", danger: true,
  text: `It gets its settings of before again: image ${image(service.PreviousSpec)}.`,
  run: () => updateService(service.ID, () => {}, "&rollback=previous"),
});

export const remove = (service) => ({
  title: `Remove ${service.Spec.Name}?`, verb: "Remove", danger: true, text: "Its tasks are stopped, and the history of them is gone.",
  run: () => change(servicePath(service.ID), {}, "DELETE"),
});

export const createService = {
  title: "Create a service", verb: "Create", fields: [
    { name: "name", label: "Name", required: true }, { name: "image", label: "Image", required: true },
    { name: "replicas", label: "Replicas", type: "number", value: 1, min: 0, required: true },
    { name: "ports", label: "Published ports", hint: "8080:80 8443:443/tcp" },
    { name: "args", label: "Arguments", hint: "words, separated by spaces" },
    { name: "env", label: "Environment", rows: 2, hint: "NAME=VALUE, one a line" }],
  run: (v) => change("/services/create", {
    Name: v.name,
    TaskTemplate: { ContainerSpec: { Image: v.image, ...words("Args", v.args, /\s+/), ...words("Env", v.env, /\r?\n/) } },
    Mode: { Replicated: { Replicas: Number(v.replicas) } },
    ...(v.ports.trim() ? { EndpointSpec: { Ports: v.ports.trim().split(/[\s,]+/).map(port) } } : {}),
  }),
};

function words(name, text, separator) {
  const found = text.split(separator).map((word) => word.trim()).filter(Boolean);
  return found.length ? { [name]: found } : {};
}

function port(text) {
  const found = /^(\d{1,5}):(\d{1,5})(?:\/(tcp|udp|sctp))?$/.exec(text);
  if (!found) throw new Error(`Published ports: “${text}” is not PUBLISHED:TARGET, such as 8080:80 or 5353:53/udp`);
  return { PublishedPort: Number(found[1]), TargetPort: Number(found[2]), Protocol: found[3] || "tcp" };
}

/** `tasks`: how many the node has. */
export function setAvailability(node, availability, tasks) {
  const name = nodeName(node);
  const [title, text, verb] = {
    drain: [`Drain ${name}?`, `Its ${plural(tasks, "task")} move to other nodes.`, "Drain"],
    pause: [`Pause ${name}?`, "It keeps its tasks and gets no new ones.", "Pause"],
    active: [`Let ${name} take tasks again?`, "New tasks may be placed there.", "Activate"],
  }[availability];
  return { title, text, verb, run: async () => {
    const path = `/nodes/${encodeURIComponent(node.ID)}`, now = await read(path);
    await change(`${path}/update?version=${now.Version.Index}`, { ...now.Spec, Availability: availability });
  } };
}
