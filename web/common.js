// What the modules of the pack share: nodes, pictures, small DOM helpers.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { text } from "./translations.js"

const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0])

export const rootGraph = () => app.rootGraph ?? app.graph

// Whether a node type belongs to this pack, whatever its folder is called.
export const isOurs = (type) => definitionOf(type)?.python_module === `custom_nodes.${FOLDER}`

export const definitionOf = (type) => globalThis.LiteGraph?.registered_node_types?.[type]?.nodeData

// The nodes on an execution path: "10:3" is node 3 in the subgraph of node 10.
export function nodesOnPath(path) {
  const found = []
  let graph = rootGraph()
  for (const id of String(path).split(":")) {
    const node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id))
    if (!node) return []
    found.push(node)
    graph = node.subgraph
  }
  return found
}

export function findNode(path, type) {
  const node = nodesOnPath(path).at(-1)
  return node && [node.comfyClass, node.type].includes(type) ? node : undefined
}

// All nodes, those in subgraphs included.
export function* everyNode(graph = rootGraph()) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    yield node
    if (node.subgraph) yield* everyNode(node.subgraph)
  }
}

export function element(tag, style, parent) {
  const made = document.createElement(tag)
  Object.assign(made.style, style)
  parent?.append(made)
  return made
}

// A pen in pixels of the page on the cleared canvas; nothing while the canvas has no size.
export function penOf(canvas, ratio) {
  const { clientWidth: width, clientHeight: height } = canvas
  if (!width || !height) return undefined
  canvas.width = Math.round(width * ratio)
  canvas.height = Math.round(height * ratio)
  const pen = canvas.getContext("2d")
  pen.setTransform(ratio, 0, 0, ratio, 0, 0)
  return pen
}

export function redraw(node) {
  node.setDirtyCanvas?.(true, true)
}

// Enlarges a node to the size that its content needs.
export function fit(node) {
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  redraw(node)
}

// Calls `then` after what a node does at an event already.
export function chain(node, event, then) {
  const before = node[event]
  node[event] = function (...given) {
    const result = before?.apply(this, given)
    then.apply(this, given)
    return result
  }
}

// Makes a view for every node of a type and updates them: the page has no event for a changed picture of another node.
export function updateViews(name, type, create, pause) {
  const views = new Map() // node -> its view
  app.registerExtension({
    name,
    nodeCreated(node) {
      if (node.comfyClass !== type) return
      const view = create(node)
      views.set(node, view)
      chain(node, "onRemoved", () => views.delete(node))
      chain(node, "onAdded", () => views.set(node, view)) // a node that comes back by undo
    },
    setup() {
      setInterval(() => {
        for (const [node, view] of views) if (node.graph) view.update()
      }, pause)
    },
  })
}

// Adds an element to a node, in both renderers; it is no value of the workflow or of the prompt.
// An app shows it under its label.
export function addElement(node, name, root, height, options = {}) {
  root.className = `inlay-${name}`
  const widget = node.addDOMWidget(`inlay_${name}`, `inlay.inlay_${name}`, root, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: typeof height === "function" ? height : () => height,
    ...options,
  })
  widget.serialize = false
  widget.label = text(name)
  return widget
}

// The field of an app that shows the element.
export const appField = (root) => root.closest("[data-testid=app-mode-widget-item]")

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

export const isLinked = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null)

export function setWidget(node, name, value) {
  const widget = widgetOf(node, name)
  if (!widget || widget.value === value) return
  widget.value = value
  widget.callback?.(value)
}

// One step of the undo history.
export function recordChange() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.()
}

const outputKey = (node) => (node.graph?.isRootGraph ?? true ? `${node.id}` : `${node.graph.id}:${node.id}`)

// What a node gave to the page when it ran, or what Load Image shows before.
export const outputOf = (node) => app.nodeOutputs?.[outputKey(node)]

export const viewUrl = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`)

// The node and the output slot behind an input, through subgraphs in both directions.
export function origin(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1
  if (slot < 0) return undefined
  let link = node.getInputLink(slot)
  let graph = node.graph
  for (let depth = 0; link && depth < 16; depth++) {
    let source = graph.getNodeById(link.origin_id)
    if (!source) {
      // the link starts at the inside of a subgraph's own input
      const outside = [...everyNode()].find((other) => other.subgraph === graph)
      if (!outside?.inputs?.[link.origin_slot]) return undefined
      link = outside.getInputLink(link.origin_slot)
      graph = outside.graph
      continue
    }
    if (!source.isSubgraphNode?.()) return source
    const inner = source.resolveSubgraphOutputLink(link.origin_slot)
    if (!inner) return undefined
    graph = source.subgraph
    if (inner.outputNode && !inner.outputNode.isSubgraphNode?.()) return inner.outputNode
    link = inner.link
  }
  return undefined
}

// Address of the picture that is wired into an input, if the page has it before a run.
export function upstreamUrl(node, name) {
  const source = origin(node, name)
  if (!source) return undefined
  const preview = app.nodePreviewImages?.[outputKey(source)]?.[0]
  if (preview) return preview
  const file = outputOf(source)?.images?.[0]
  return file ? viewUrl(file) : source.imgs?.[0]?.src
}
