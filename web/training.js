// The live view on Train Subject: its loss and samples while it trains, in every open page.
// A page that is opened or reloaded half-way asks the host for what has been and follows from there.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addElement, appField, element, findNode, fit, penOf, rootGraph } from "./common.js"
import { showNotes } from "./messages.js"
import { text, translated } from "./translations.js"

const NODE = "SubjectFinetune"
const EVENT = "inlay.training"
const CHART = 110 // pixels
const STRIP = 68
const MARGIN = { left: 44, right: 8, top: 8, bottom: 18 }

const runs = new Map() // workflow and node, as the host names it -> the run so far
const views = new WeakMap() // node -> its view

const place = ({ workflow, node }) => `${workflow} ${node}`

// Nodes of several workflows have the same number; a graph from elsewhere comes without a workflow.
function isElsewhere(run) {
  const here = rootGraph()?.id
  return Boolean(run.workflow && here && run.workflow !== here)
}

// The part of `points` that comes after what is known already.
function append(known, points) {
  const last = known.length ? known[known.length - 1][0] : 0
  known.push(...points.filter(([step]) => step > last))
}

function merge(news) {
  const run = runs.get(place(news))
  if (!run || run.key !== news.key) return false
  const { points, samples, ...rest } = news
  Object.assign(run, rest)
  append(run.points, points)
  append(run.samples, samples)
  if (run.samples.length > 12) run.samples.splice(1, 1)
  return true
}

async function fetchRuns() {
  const answer = await api.fetchApi("/inlay/training").catch(() => undefined)
  if (!answer?.ok) return // a host that is going down
  for (const run of await answer.json()) {
    runs.set(place(run), run)
    show(run)
  }
}

function show(run) {
  const node = isElsewhere(run) ? undefined : findNode(run.node, NODE)
  views.get(node)?.show(run)
}

function addView(node) {
  let run
  const root = element("div", { display: "flex", flexDirection: "column", gap: "4px", overflow: "hidden" })
  const canvas = element("canvas", { width: "100%", height: `${CHART}px`, flex: "none" }, root)
  const strip = element("div", { display: "flex", gap: "3px", overflowX: "auto", flex: "none" }, root)
  const height = () => (run ? CHART + 20 + (strip.childElementCount ? STRIP + 4 : 0) : 0)
  canvas.hidden = true // until the first run
  addElement(node, "training", root, height)
  let asked = false
  const draw = () => {
    asked = false
    if (run) drawChart(canvas, run)
  }
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas)

  return {
    show(newer) {
      const before = height()
      const isNew = newer.key !== run?.key
      run = newer
      canvas.hidden = false
      drawStrip(strip, run.samples)
      if (height() !== before) fit(node)
      if (isNew || height() !== before) // in an app
        setTimeout(() => appField(root)?.scrollIntoView(), 100)
      if (isNew && run.notes.length) showNotes([node], run.notes)
      root.dataset.state = run.state
      canvas.title = root.dataset.stage = run.stage ?? ""
      if (run.stage && run.state === "running")
        translated(run.stage).then((stage) => {
          run.stageText = stage
          draw()
        })
      root.dataset.step = run.step
      if (!asked) {
        asked = true
        requestAnimationFrame(draw)
      }
    },
  }
}

function drawStrip(strip, samples) {
  const wanted = samples.map(([step]) => String(step))
  for (const image of [...strip.children]) if (!wanted.includes(image.dataset.step)) image.remove()
  samples.forEach(([step, picture], place) => {
    if (strip.children[place]?.dataset.step === String(step)) return
    const image = element("img", { height: `${STRIP}px`, borderRadius: "3px", flex: "none" })
    Object.assign(image, { src: picture, title: `step ${step}`, alt: `sample at step ${step}` })
    image.dataset.step = step
    strip.insertBefore(image, strip.children[place] ?? null)
    strip.scrollLeft = strip.scrollWidth
  })
}

// Running mean with a window of a tenth of the points: single steps of a diffusion loss say little.
function smoothed(points) {
  const half = Math.max(1, Math.floor(points.length / 20))
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1)
    return [step, near.reduce((sum, [, loss]) => sum + loss, 0) / near.length]
  })
}

// "45 s", "3 min 20 s", "1 h 5 min"
function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor((seconds % 60) / 10) * 10} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}

function caption(run) {
  if (run.state === "loaded") return text("loaded", run.stage.replace(/(-[\da-f]{16})?\.safetensors$/, ""))
  if (run.state === "running" && run.stage) return run.stageText ?? run.stage
  const endings = { stopped: "stopped", failed: "failed_at", finished: "finished" }
  const parts = [text("step", run.step, run.steps)]
  if (endings[run.state]) parts.unshift(text(endings[run.state]))
  else if (run.left != null) parts.push(text("left", duration(run.left)))
  return parts.join(" · ")
}

function drawChart(canvas, run) {
  const pen = penOf(canvas, window.devicePixelRatio || 1)
  if (!pen) return
  const { clientWidth: width, clientHeight: height } = canvas
  const colour = (name, otherwise) => getComputedStyle(canvas).getPropertyValue(name).trim() || otherwise
  const ink = colour("--descrip-text", "#999")
  pen.font = "10px sans-serif"
  pen.fillStyle = ink

  const heldOut = run.held_out ?? []
  const losses = [...run.points, ...heldOut].map(([, loss]) => loss)
  const low = Math.min(...losses, Infinity)
  const high = Math.max(...losses, -Infinity)
  const right = width - MARGIN.right
  const bottom = height - MARGIN.bottom
  const x = (step) => MARGIN.left + ((right - MARGIN.left) * step) / Math.max(run.steps, 1)
  const y = (loss) => bottom - ((bottom - MARGIN.top) * (loss - low)) / (high - low || 1)

  pen.strokeStyle = colour("--border-color", "#555")
  pen.strokeRect(MARGIN.left + 0.5, MARGIN.top + 0.5, right - MARGIN.left - 1, bottom - MARGIN.top - 1)
  pen.textBaseline = "middle"
  if (losses.length) {
    pen.textAlign = "right"
    pen.fillText(high.toPrecision(2), MARGIN.left - 4, MARGIN.top + 5)
    if (high > low) pen.fillText(low.toPrecision(2), MARGIN.left - 4, bottom - 5)
  }
  pen.textAlign = "left"
  pen.fillText(caption(run), MARGIN.left, height - 8, right - MARGIN.left)

  pen.save()
  pen.globalAlpha = 0.35
  for (const [step, loss] of run.points) pen.fillRect(x(step) - 1, y(loss) - 1, 2, 2)
  pen.restore()
  pen.strokeStyle = { stopped: "#d9a441", failed: "#d9534f" }[run.state] ?? "#e8743b"
  pen.lineWidth = 1.5
  pen.beginPath()
  for (const [step, loss] of smoothed(run.points)) pen.lineTo(x(step), y(loss))
  pen.stroke()
  pen.strokeStyle = "#3b82f6" // the picture that is held out
  pen.beginPath()
  for (const [step, loss] of heldOut) pen.lineTo(x(step), y(loss))
  pen.stroke()
}

app.registerExtension({
  name: "inlay.training",
  nodeCreated(node) {
    if (node.comfyClass === NODE) views.set(node, addView(node)) // empty: an app finds it when it opens
  },
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      if (merge(detail)) show(runs.get(place(detail)))
      else fetchRuns() // a run that began before this page did
    })
    api.addEventListener("reconnected", fetchRuns)
  },
  // After a reload of the page, and when another workflow is opened; the canvas does not wait for it.
  afterConfigureGraph() {
    fetchRuns()
  },
})
