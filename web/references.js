// Load References: the photos with their masks on the node; photos are dropped on it or chosen from a dialog.

import { api } from "../../scripts/api.js"
import { addElement, element, isLinked, outputOf, recordChange, setWidget, updateViews, viewUrl, widgetOf } from "./common.js"
import { showNotes, toast } from "./messages.js"
import { text } from "./translations.js"

const NODE = "InlayLoadReferences"
const SIDE = 62 // pixels of a thumbnail: four in a row of an app
const KINDS = /^image\/|\.(jpe?g|jfif|png|webp|bmp|tiff?|gif|avif|hei[cf])$/i
const photosOf = (files) => [...files].filter((file) => KINDS.test(file.type) || KINDS.test(file.name))

class PhotoView {
  constructor(node) {
    this.node = node
    this.root = element("div", { display: "flex", flexDirection: "column", gap: "4px", minHeight: `${SIDE + 40}px` })
    const grid = { display: "flex", flexWrap: "wrap", gap: "4px", alignContent: "flex-start" }
    this.grid = element("div", { ...grid, flex: "1 1 0", overflowY: "auto" }, this.root)
    this.button = element("button", { flex: "none", fontSize: "12px", padding: "3px", cursor: "pointer" }, this.root)
    Object.assign(this.button.style, { border: "1px dashed #888", borderRadius: "5px", background: "none", color: "inherit" })
    this.files = element("input", { display: "none" }, this.root)
    Object.assign(this.files, { type: "file", multiple: true, accept: "image/*,.heic,.heif,.avif,.jfif" })
    this.button.onclick = () => this.files.click()
    this.files.onchange = () => {
      this.send(this.files.files)
      this.files.value = ""
    }
    this.root.addEventListener("dragover", (event) => event.preventDefault())
    this.root.addEventListener("drop", (event) => {
      event.preventDefault()
      event.stopPropagation()
      this.send(event.dataTransfer.files)
    })
    addElement(node, "references", this.root, SIDE + 60)
    node.onDragOver = (event) => [...(event?.dataTransfer?.items ?? [])].some((item) => item.kind === "file")
    node.onDragDrop = (event) => {
      const { files } = event.dataTransfer
      this.send(files)
      return photosOf(files).length > 0
    }
  }

  get folder() {
    return widgetOf(this.node, "folder")?.value
  }

  // Reads the folder again when another is chosen; after a run shows what was given on.
  update() {
    const made = outputOf(this.node)?.inlay_references
    const links = ["images", "background_removal"].map((name) => isLinked(this.node, name))
    const state = JSON.stringify([this.folder, made, links, text("choose")])
    if (state === this.state) return
    this.state = state
    this.button.textContent = `${text("drop")} / ${text("choose")}`
    if (made && this.shown === this.folder) this.show(made.map((file) => [viewUrl(file), file.label]))
    else this.read()
  }

  async read() {
    const { folder, state } = this
    this.shown = folder
    if (isLinked(this.node, "images") || !folder) return this.show([])
    const answer = await api.fetchApi(`/inlay/references?${new URLSearchParams({ folder })}`).catch(() => undefined)
    if (!answer?.ok || state !== this.state) return
    const { pictures, notes, no_mask: whole, error } = await answer.json()
    this.show(pictures.map(({ thumbnail, name, mask }) => [thumbnail, mask ? name : `${name}: ${text("no_mask")}`]))
    showNotes([this.node], error ? [error] : isLinked(this.node, "background_removal") ? notes : [...notes, ...whole])
  }

  show(pictures) {
    this.grid.replaceChildren()
    for (const [source, label] of pictures) {
      const image = element("img", { height: `${SIDE}px`, borderRadius: "4px", flex: "none" }, this.grid)
      Object.assign(image, { src: source, title: label, alt: label })
    }
    this.root.dataset.count = pictures.length
    this.node.setDirtyCanvas?.(true, true)
  }

  // The first photos make a folder of their own, later ones join them.
  async send(files) {
    const pictures = photosOf(files)
    if (!pictures.length) return
    if (this.sent !== this.folder) this.sent = newFolder()
    this.button.textContent = text("sent", pictures.length)
    for (const file of pictures) {
      const body = new FormData()
      body.append("image", file, file.name)
      body.append("subfolder", this.sent)
      body.append("type", "input")
      const answer = await api.fetchApi("/upload/image", { method: "POST", body }).catch(() => undefined)
      if (!answer?.ok) toast("error", this.node.title, text("not_sent", file.name))
    }
    const widget = widgetOf(this.node, "folder")
    const { values } = widget.options
    if (Array.isArray(values) && !values.includes(this.sent)) values.push(this.sent)
    setWidget(this.node, "folder", this.sent)
    this.state = this.shown = undefined
    this.update()
    recordChange()
  }
}

function newFolder() {
  const now = new Date()
  const two = (number) => String(number).padStart(2, "0")
  const day = [now.getFullYear(), two(now.getMonth() + 1), two(now.getDate())].join("-")
  return `photos ${day} ${[now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join("")}`
}

const create = (node) => {
  const view = new PhotoView(node)
  node.setSize([Math.max(node.size[0], 300), node.computeSize()[1] + SIDE]) // for two rows, or a warning
  return view
}

updateViews("inlay.references", NODE, create, 300)
