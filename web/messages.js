// Errors and warnings where the user looks: a toast with our own sentence, and the same text on the node.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addElement, definitionOf, element, isOurs, nodesOnPath, redraw, widgetOf } from "./common.js"
import { text, translated } from "./translations.js"

const TOAST_LIFE = 20_000 // milliseconds
const COLOURS = { error: ["#5c1a1a", "#ffd9d9"], warn: ["#574312", "#ffedc2"] }
const LINE = 17
const MOST = 6 // lines; of longer ones the rest is scrolled to, and the tooltip has it

const views = new WeakMap() // node -> the element with its message

// Shows `sentence` on the node, or nothing when it is empty.
export function showMessage(node, kind, sentence) {
  if (node.subgraph) return kind === "warn" && sentence && toast(kind, node.title, sentence)
  const view = views.get(node)
  if (!sentence) return view && hide(node, view)
  const { root, grown } = view ?? addMessage(node)
  const [background, color] = COLOURS[kind]
  Object.assign(root.style, { background, color })
  root.dataset.kind = kind
  if (root.textContent === sentence) return
  root.title = root.textContent = sentence
  const before = node.size[1]
  const needed = node.computeSize()[1]
  if (needed > before) node.setSize([node.size[0], needed])
  views.get(node).grown = grown + node.size[1] - before
  redraw(node)
}

// Sets an element's height to what its text needs, where that is few lines; returns it in pixels.
function fitText(root, width) {
  const copy = root.cloneNode(true)
  Object.assign(copy.style, { position: "absolute", minHeight: 0, width: `${width}px` })
  document.body.append(copy)
  const height = Math.min(copy.offsetHeight, 12 + MOST * LINE)
  copy.remove()
  root.style.minHeight = `${height}px` // the Vue renderer takes its size from the style
  return height
}

function addMessage(node) {
  const root = element("div", {
    boxSizing: "border-box",
    padding: "6px 8px",
    borderRadius: "6px",
    fontSize: "12px",
    lineHeight: `${LINE}px`,
    overflowY: "auto",
    userSelect: "text",
    whiteSpace: "pre-wrap",
  })
  let known, pixels
  const height = () => {
    const width = node.size[0] - 20
    if (known !== root.title + width) pixels = fitText(root, width)
    known = root.title + width
    return 20 + pixels
  }
  const widget = addElement(node, "message", root, height, { getMaxHeight: height })
  const view = { root, widget, grown: 0 }
  views.set(node, view)
  return view
}

function hide(node, view) {
  views.delete(node)
  if (widgetOf(node, "inlay_message") === view.widget) node.removeWidget(view.widget)
  view.root.remove()
  const height = Math.max(node.size[1] - view.grown, node.computeSize()[1])
  node.setSize([node.size[0], height])
  redraw(node)
}

const failed = new Set() // nodes whose message the next run removes
let toasts = []

export function clearErrors() {
  for (const node of failed) showMessage(node, "error", "")
  for (const shown of toasts) app.extensionManager?.toast?.remove?.(shown)
  failed.clear()
  toasts = []
}

export function toast(severity, summary, detail) {
  const shown = { severity, summary, detail, life: TOAST_LIFE }
  toasts.push(shown)
  app.extensionManager?.toast?.add(shown)
}

function report(path, type, key, sentences) {
  const nodes = nodesOnPath(path)
  const name = nodes.at(-1)?.title ?? type
  const said = sentences.join("\n")
  toast("error", text(key, name), said)
  for (const node of nodes) {
    showMessage(node, "error", said)
    failed.add(node)
  }
}

// The text of an exception without the host's additions.
function sentenceOf({ exception_type: kind = "", exception_message: message = "" }, name) {
  const said = message.trim()
  if (/OutOfMemory/.test(kind) || said.includes("ran out of memory on your GPU")) return text("memory")
  if (/(^|\.)ValueError$/.test(kind)) return said.split("\n\nTIPS:")[0]
  const short = kind.split(".").at(-1)
  return text("unexpected", name, `${short}: ${said.split("\n")[0]}`.slice(0, 300).replace(/\.$/, ""))
}

const REFUSALS = {
  custom_validation_failed: (error, input) => error.details.replace(`${input} - `, ""),
  required_input_missing: (error, input, type) => {
    const kind = definitionOf(type)?.input?.required?.[input]?.[0]
    const isValue = Array.isArray(kind) || /^(INT|FLOAT|STRING|BOOLEAN|COMBO|undefined)$/.test(kind)
    return isValue ? text("empty", input) : text("required", input, kind)
  },
  value_not_in_list: (error, input) =>
    error.extra_info?.received_value ? text("choice", input, error.extra_info.received_value) : text("empty", input),
  value_smaller_than_min: ({ extra_info: { received_value: value, input_config: config } }, input) =>
    text("small", input, value, config?.[1]?.min),
  value_bigger_than_max: ({ extra_info: { received_value: value, input_config: config } }, input) =>
    text("big", input, value, config?.[1]?.max),
  return_type_mismatch: ({ extra_info: { received_type: received, input_config: config } }, input) =>
    text("type", input, received, [config?.[0]].flat().join(", ")),
}

// Our sentence for one entry of the host's `node_errors`.
function refusalOf(error, type) {
  const input = error.extra_info?.input_name ?? ""
  const known = REFUSALS[error.type]
  return known ? known(error, input, type) : error.details || error.message
}

// Warnings of the pack's code on the nodes; none of them removes an earlier one.
export async function showNotes(nodes, notes) {
  const said = (await Promise.all(notes.map(translated))).join("\n")
  for (const node of nodes) showMessage(node, "warn", said)
}

async function showRefusals(errors) {
  for (const [path, { class_type: type, errors: found }] of Object.entries(errors ?? {})) {
    if (!isOurs(type)) continue
    const sentences = [...new Set(found.map((error) => refusalOf(error, type)))] // one error comes once for each named input
    report(path, type, "invalid", await Promise.all(sentences.map(translated)))
  }
}

// A prompt without the trained subject's words paints something else.
function warnAboutPrompts(graph) {
  const all = Object.values(graph)
  const { token, class_name: kind } = all.find((node) => node.class_type === "SubjectFinetune")?.inputs ?? {}
  const lacking = []
  for (const path of new Set(all.map((node) => node.inputs?.positive?.[0]))) {
    const { text: words, prompt = words } = graph[path]?.inputs ?? {}
    if (![token, kind, prompt].every((given) => given?.trim)) continue
    const left = [token, kind].filter((word) => !prompt.toLowerCase().includes(word.trim().toLowerCase()))
    if (!left.length) return
    for (const node of nodesOnPath(path)) lacking.push([node, left.join(" ")])
  }
  for (const [node, left] of lacking) {
    showMessage(node, "warn", text("lacking", left, `${token} ${kind}`))
    failed.add(node)
  }
}

// The host has no event for a refused prompt, only its answer.
function watchPrompts() {
  const queue = api.queuePrompt
  api.queuePrompt = async function (...given) {
    clearErrors()
    warnAboutPrompts(given[1]?.output ?? {})
    try {
      const answer = await queue.apply(this, given)
      showRefusals(answer?.node_errors)
      return answer
    } catch (error) {
      showRefusals(error?.response?.node_errors)
      throw error
    }
  }
}

app.registerExtension({
  name: "inlay.messages",
  setup() {
    watchPrompts()
    api.addEventListener("executed", ({ detail }) => {
      const notes = detail.output?.inlay_notes
      if (notes) showNotes(nodesOnPath(detail.display_node ?? detail.node), notes)
    })
    api.addEventListener("execution_error", async ({ detail }) => {
      if (!isOurs(detail.node_type)) return
      const name = nodesOnPath(detail.node_id).at(-1)?.title ?? detail.node_type
      report(detail.node_id, detail.node_type, "failed", [await translated(sentenceOf(detail, name))])
    })
  },
})
