// The page's own words, and the sentences of the nodes in other languages.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

// In English; locales/zh/main.json has them in Chinese.
const WORDS = {
  failed: "{0} stopped",
  invalid: "{0} cannot start",
  unexpected: "Unexpected error in {0}: {1}. The log has the details.",
  memory: "The graphics card is out of memory. Choose a smaller card under `memory` on Train Subject, or a smaller picture.",
  required: "{0}: nothing is connected; connect an output of type {1}.",
  empty: "{0}: there is no value; enter or choose one.",
  choice: "{0}: '{1}' is not available; choose another.",
  small: "{0}: {1} is too small; the least is {2}.",
  big: "{0}: {1} is too large; the most is {2}.",
  type: "{0}: an output of type {1} is connected; this input takes {2}.",
  no_picture: "Connect a picture to see it here.",
  not_yet: "The picture appears here after the first run.",
  not_found: "The picture cannot be loaded.",
  drag: "Drag the box, or draw a new one.",
  linked: "The box comes from connected values.",
  mask_wins: "The painted mask replaces the box.",
  drop: "Drop photos here",
  choose: "Choose photos",
  sent: "Copying {0} photos",
  not_sent: "{0} could not be copied to ComfyUI.",
  no_mask: "whole frame",
  lacking: "“{0}” is missing; write for example: a photo of {1}.",
  step: "step {0} of {1}",
  finished: "finished",
  stopped: "stopped",
  failed_at: "failed",
  loaded: "already learned: loaded {0}",
  left: "{0} left",
  all_settings: "Show all settings",
  fewer_settings: "Hide settings with their defaults",
  box: "Where the object goes",
  references: "Your photos",
  training: "Training",
  message: "Message",
}

export const locale = () => String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en")
const isChinese = () => locale().startsWith("zh")

export function text(key, ...values) {
  const words = (isChinese() && chinese.inlayPage?.[key]) || WORDS[key]
  return words.replace(/\{(\d)\}/g, (_, place) => values[place])
}

// What the pack's locales/zh/main.json adds to the page's own words; read when the page is Chinese.
let chinese = {}
async function readChinese() {
  if (isChinese() && !chinese.inlayPage) chinese = (await api.getCustomNodesI18n().catch(() => 0))?.zh ?? {}
  return chinese
}

const escape = (part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")

// A sentence of a node in the user's language, where there is a translation; else as it is.
export async function translated(sentence) {
  const { inlaySentences = {} } = isChinese() ? await readChinese() : {} // English pattern -> Chinese
  for (const [pattern, other] of Object.entries(inlaySentences)) {
    const names = [...pattern.matchAll(/\{([\w.]*)\}/g)].map((match) => match[1])
    const source = pattern.split(/\{[\w.]*\}/).map(escape).join("([\\s\\S]*?)")
    const match = new RegExp(`^${source}$`).exec(sentence.trim())
    if (match) return other.replace(/\{([\w.]*)\}/g, (whole, name) => match[1 + names.indexOf(name)] ?? whole)
  }
  return sentence
}

// Titles, labels and notes of the templates: a workflow file holds one language.
// Line by line: what a user wrote has no translation and stays.
function translateGraph({ nodes, groups }, known) {
  const translate = (words) => words?.split("\n").map((line) => known[line] ?? line).join("\n")
  for (const shown of [...groups, ...nodes]) {
    shown.title = translate(shown.title)
    for (const widget of shown.widgets ?? []) {
      widget.label = translate(widget.label)
      if (shown.type === "MarkdownNote") widget.value = translate(widget.value)
    }
    if (shown.subgraph) translateGraph(shown.subgraph, known)
  }
}

app.registerExtension({
  name: "inlay.translations",
  init: readChinese, // before nodes are made
  setup() {
    app.ui.settings.addEventListener("Comfy.Locale.change", readChinese)
  },
  async afterConfigureGraph() {
    const graph = app.rootGraph ?? app.graph
    if (!isChinese() || !graph.nodes.some((node) => node.properties?.cnr_id === "inlay")) return
    translateGraph(graph, (await readChinese()).inlayTemplates ?? {})
  },
})
