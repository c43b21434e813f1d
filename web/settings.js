// Train Subject: settings that few users change are hidden where they have their defaults.
// Old workflows that set one still show it; Training Options has them all.

import { app } from "../../scripts/app.js"
import { chain, isLinked, redraw, widgetOf } from "./common.js"
import { text } from "./translations.js"

const NODE = "SubjectFinetune"
const DEFAULTS = {
  rank: 0,
  learning_rate: 0,
  batch_size: 0,
  resolution: 0,
  regular_prompt: "",
  precision: "preset",
  optimiser: "preset",
  gradient_checkpointing: "preset",
  ema_decay: 0,
  attributes: "",
  captions: "",
}

function hideUnused(node) {
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const widget = widgetOf(node, name)
    if (!widget) continue
    const wanted = name === "regular_prompt" && isLinked(node, "regular_images")
    const hidden = !node.properties.inlay_all && widget.value === usual && !isLinked(node, name) && !wanted
    widget.hidden = hidden
    widget.options.hidden = hidden
    if (widget.element) widget.element.hidden = hidden
  }
  redraw(node)
}

app.registerExtension({
  name: "inlay.settings",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    hideUnused(node)
    node.setSize([Math.max(node.size[0], 300), node.computeSize()[1]])
    for (const event of ["onConfigure", "onConnectionsChange"]) chain(node, event, () => hideUnused(node))
    chain(node, "getExtraMenuOptions", function (canvas, options) {
      options.push({
        content: text(this.properties.inlay_all ? "fewer_settings" : "all_settings"),
        callback: () => {
          this.properties.inlay_all = !this.properties.inlay_all
          hideUnused(this)
          this.setSize([this.size[0], this.computeSize()[1]])
        },
      })
    })
  },
})
