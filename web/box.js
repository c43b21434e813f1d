// Box Mask: the picture with a rectangle to draw, move and resize. It writes x, y, width and height.

import { app } from "../../scripts/app.js"
import { addElement, appField, element, fit, isLinked, origin, outputOf, penOf, recordChange } from "./common.js"
import { setWidget, updateViews, upstreamUrl, viewUrl, widgetOf } from "./common.js"
import { text } from "./translations.js"

const NODE = "InlayBoxMask"
const NAMES = ["x", "y", "width", "height"]
const HEIGHT = 160 // pixels of the picture's place, at least
const LINE = 18 // below it
const GRIP = 8 // half the size of the area around a corner or an edge that takes hold of it

// The box that a drag of one grip gives. `grip` is [-1|0|1, -1|0|1]: which sides move with the mouse.
function resized({ x, y, width, height }, [across, down], dx, dy, size) {
  const limit = (value, most) => Math.min(Math.max(value, 0), most)
  const moved = (start, length, side, by, most) => {
    const ends = [start, start + length]
    if (side) ends[side > 0 ? 1 : 0] += by
    const [low, high] = ends.map((end) => limit(Math.round(end), most)).sort((a, b) => a - b)
    return low === high ? [Math.min(low, most - 1), 1] : [low, high - low]
  }
  const [left, wide] = moved(x, width, across, dx, size.width)
  const [top, tall] = moved(y, height, down, dy, size.height)
  return { x: left, y: top, width: wide, height: tall }
}

// The box, moved by so much and kept inside of the picture.
function moved({ x, y, width, height }, dx, dy, size) {
  const inside = (value, length, most) => Math.round(Math.min(Math.max(value, 0), Math.max(most - length, 0)))
  return { x: inside(x + dx, width, size.width), y: inside(y + dy, height, size.height), width, height }
}

// Whether the address is that of Load Image's file.
function isChosenFile(node, url) {
  const name = new URL(url, location.href).searchParams.get("filename")
  return widgetOf(origin(node, "image") ?? {}, "image")?.value?.replace?.(" [input]", "").endsWith(name)
}

class BoxEditor {
  constructor(node) {
    this.node = node
    this.picture = undefined // an image that is loaded
    this.size = undefined // of the picture, in its own pixels
    this.root = element("div", { display: "flex", flexDirection: "column", minHeight: `${HEIGHT + LINE}px` })
    const filling = { flex: "1 1 0", minHeight: `${HEIGHT}px`, width: "100%", touchAction: "none" }
    this.canvas = element("canvas", { ...filling, outline: "none" }, this.root)
    this.canvas.tabIndex = 0
    const line = { height: `${LINE}px`, flex: "none", fontSize: "11px", overflow: "hidden", whiteSpace: "nowrap" }
    this.line = element("div", { ...line, textOverflow: "ellipsis", color: "var(--descrip-text, #999)" }, this.root)
    this.canvas.addEventListener("pointerdown", (event) => this.take(event))
    this.canvas.addEventListener("pointermove", (event) => this.drag(event))
    for (const end of ["pointerup", "pointercancel"])
      this.canvas.addEventListener(end, (event) => this.release(event))
    this.canvas.addEventListener("keydown", (event) => this.nudge(event))
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(this.canvas)
    addElement(node, "box", this.root, HEIGHT + LINE + 20)
  }

  get box() {
    if (this.draft) return this.draft // while the mouse drags; written at the end, as one step of the history
    const found = isLinked(this.node, "bboxes") && outputOf(this.node)?.inlay_box?.[0] // of the last run
    return found || Object.fromEntries(NAMES.map((name) => [name, Number(widgetOf(this.node, name)?.value ?? 0)]))
  }

  // Whether the last run took the painted mask that is connected.
  get isReplaced() {
    return isLinked(this.node, "mask") && Boolean(outputOf(this.node)?.inlay_masked?.[0])
  }

  get isFixed() {
    return ["bboxes", ...NAMES].some((name) => isLinked(this.node, name))
  }

  // Draws where something changed.
  update() {
    const given = outputOf(this.node)?.inlay_picture?.[0] // of the last run: pictures that only then exist
    const url = upstreamUrl(this.node, "image") ?? (given && isLinked(this.node, "image") ? viewUrl(given) : undefined)
    if (url !== this.url) this.load(url, url && given && url === viewUrl(given) ? given : undefined)
    const state = JSON.stringify([this.url, this.box, this.isReplaced, this.isFixed, isLinked(this.node, "image")])
    if (state === this.state) return
    this.state = state
    this.draw()
  }

  load(url, given) {
    this.url = url
    this.picture = this.size = this.broken = undefined
    if (!url) return
    const picture = new Image()
    picture.onload = () => {
      if (this.url !== url) return
      this.picture = picture
      this.size = { width: given?.width ?? picture.naturalWidth, height: given?.height ?? picture.naturalHeight }
      this.follow(!given && isChosenFile(this.node, url) ? this.size : undefined)
      this.draw()
    }
    picture.onerror = () => {
      if (this.url === url) this.broken = true
      this.draw()
    }
    picture.src = url
  }

  // Keeps the box on the same part when a file of another size is chosen.
  follow(size) {
    const before = this.fileSize
    this.fileSize = size
    if (!size || !before || this.isFixed) return
    const { x, y, width, height } = this.box
    const [across, down] = [size.width / before.width, size.height / before.height]
    const [left, wide, top, tall] = [x * across, width * across, y * down, height * down].map(Math.round)
    this.write({ x: left, y: top, width: wide, height: tall })
    recordChange()
  }

  // Where the picture lies on the canvas: left, top and pixels of the canvas for one of the picture.
  get frame() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    const scale = Math.min(width / this.size.width, height / this.size.height)
    return [(width - this.size.width * scale) / 2, (height - this.size.height * scale) / 2, scale]
  }

  // A place of the mouse in pixels of the picture, whatever the zoom.
  at(event) {
    const seen = this.canvas.getBoundingClientRect()
    const [left, top, scale] = this.frame
    const zoom = seen.width / this.canvas.clientWidth || 1
    return [((event.clientX - seen.left) / zoom - left) / scale, ((event.clientY - seen.top) / zoom - top) / scale]
  }

  // What the mouse would take hold of: a grip [-1|0|1, -1|0|1], "move" or "draw".
  hold([x, y]) {
    const { box } = this
    const reach = GRIP / this.frame[2]
    const near = (value, low, length) =>
      Math.abs(value - low) <= reach ? -1 : Math.abs(value - low - length) <= reach ? 1 : 0
    const within = (value, low, length, more) => value >= low - more && value <= low + length + more
    if (!within(x, box.x, box.width, reach) || !within(y, box.y, box.height, reach)) return "draw"
    const grip = [near(x, box.x, box.width), near(y, box.y, box.height)]
    return grip[0] || grip[1] ? grip : "move"
  }

  take(event) {
    if (event.button || !this.picture || this.isFixed) return
    event.preventDefault()
    event.stopPropagation()
    this.canvas.focus({ preventScroll: true })
    this.canvas.setPointerCapture(event.pointerId)
    const start = this.at(event)
    let held = this.hold(start)
    let { box } = this
    if (held === "draw") {
      box = { x: start[0], y: start[1], width: 0, height: 0 }
      held = [1, 1]
      this.drawing = true // a click without a drag changes nothing
    }
    this.held = { held, start, box }
  }

  drag(event) {
    if (!this.picture || this.isFixed) return
    const place = this.at(event)
    if (!this.held) {
      this.canvas.style.cursor = cursor(this.hold(place))
      return
    }
    event.stopPropagation()
    const { held, start, box } = this.held
    const [dx, dy] = [place[0] - start[0], place[1] - start[1]]
    if (this.drawing && Math.hypot(dx, dy) * this.frame[2] < 4) return
    this.drawing = false
    this.draft = held === "move" ? moved(box, dx, dy, this.size) : resized(box, held, dx, dy, this.size)
    this.update()
  }

  release(event) {
    if (!this.held) return
    event.stopPropagation()
    const { draft } = this
    this.held = this.draft = undefined
    this.drawing = false
    if (draft) this.write(draft)
    recordChange()
  }

  nudge(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key]
    if (!steps || !this.picture || this.isFixed) return
    event.preventDefault()
    event.stopPropagation()
    const [dx, dy] = steps.map((step) => step * (event.ctrlKey ? 10 : 1))
    this.write(
      event.shiftKey ? resized(this.box, [1, 1], dx, dy, this.size) : moved(this.box, dx, dy, this.size),
    )
    recordChange()
  }

  write(box) {
    for (const name of NAMES) setWidget(this.node, name, box[name])
    this.update()
  }

  hint() {
    if (!isLinked(this.node, "image")) return text("no_picture")
    if (!this.url) return text("not_yet")
    return this.broken ? text("not_found") : ""
  }

  draw() {
    const { canvas, picture } = this
    canvas.style.minHeight = `${appField(canvas) ? 240 : HEIGHT}px`
    const ratio = (window.devicePixelRatio || 1) * Math.max(1, app.canvas?.ds?.scale ?? 1)
    const pen = penOf(canvas, ratio)
    if (!pen) return
    const { clientWidth: width, clientHeight: height } = canvas
    pen.fillStyle = "rgba(0, 0, 0, 0.25)"
    pen.fillRect(0, 0, width, height)
    this.line.textContent = ""
    this.root.dataset.size = picture ? `${this.size.width}x${this.size.height}` : ""
    if (!picture) return drawHint(pen, this.hint(), width, height)
    const [left, top, scale] = this.frame
    pen.imageSmoothingEnabled = scale < 4
    pen.drawImage(picture, left, top, this.size.width * scale, this.size.height * scale)
    drawBox(pen, this.box, this.frame, this.size, this.isFixed || this.isReplaced)
    const { box } = this
    const reason = text(this.isFixed ? "linked" : this.isReplaced ? "mask_wins" : "drag")
    this.line.title = this.line.textContent = `${reason} | ${box.width} × ${box.height}`
  }
}

const cursor = (held) => {
  if (held === "draw") return "crosshair"
  if (held === "move") return held
  const [across, down] = held
  if (!across || !down) return across ? "ew-resize" : "ns-resize"
  return across === down ? "nwse-resize" : "nesw-resize"
}

function drawHint(pen, hint, width, height) {
  pen.fillStyle = "#bbb"
  pen.font = "13px sans-serif"
  pen.textAlign = "center"
  pen.textBaseline = "middle"
  pen.fillText(hint, width / 2, height / 2, width - 16)
}

function drawBox(pen, box, [left, top, scale], size, dim) {
  const [x, y, width, height] = [left + box.x * scale, top + box.y * scale, box.width * scale, box.height * scale]
  pen.save()
  pen.beginPath()
  pen.rect(left, top, size.width * scale, size.height * scale)
  pen.clip()
  pen.beginPath() // everything but the box is darker
  pen.rect(left, top, size.width * scale, size.height * scale)
  pen.rect(x, y, width, height)
  pen.fillStyle = dim ? "rgba(0, 0, 0, 0.15)" : "rgba(0, 0, 0, 0.45)"
  pen.fill("evenodd")
  pen.restore()
  pen.setLineDash(dim ? [6, 4] : [])
  pen.lineWidth = 3
  pen.strokeStyle = "rgba(0, 0, 0, 0.6)"
  pen.strokeRect(x, y, width, height)
  pen.lineWidth = 1.5
  pen.strokeStyle = "#e8743b"
  pen.strokeRect(x, y, width, height)
  if (dim) return
  pen.fillStyle = "#fff"
  for (const across of [0, 0.5, 1])
    for (const down of [0, 0.5, 1])
      if (across !== 0.5 || down !== 0.5)
        pen.fillRect(x + across * width - 3.5, y + down * height - 3.5, 7, 7)
}

const create = (node) => {
  const editor = new BoxEditor(node)
  fit(node)
  return editor
}

updateViews("inlay.box", NODE, create, 250)
