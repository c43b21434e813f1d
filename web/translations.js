// The page's own words, and the sentences of the nodes in other languages.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

// name -> English, Chinese
const WORDS = {
  failed: ["{0} stopped", "{0} 已停止"],
  invalid: ["{0} cannot start", "{0} 无法开始"],
  unexpected: ["Unexpected error in {0}: {1}. The log has the details.", "{0} 出现意外错误：{1}。详情见日志。"],
  memory: ["The graphics card is out of memory. Choose a smaller card under `memory` on Train Subject, or a smaller picture.", "显存不足。请在“训练主体”的 memory 中选择更小的显卡，或使用更小的图片。"],
  required: ["{0}: nothing is connected; connect an output of type {1}.", "{0}：未连接；请连接类型为 {1} 的输出。"],
  empty: ["{0}: there is no value; enter or choose one.", "{0}：没有值；请输入或选择。"],
  choice: ["{0}: '{1}' is not available; choose another.", "{0}：“{1}”不可用；请另选一个。"],
  small: ["{0}: {1} is too small; the least is {2}.", "{0}：{1} 太小；最小为 {2}。"],
  big: ["{0}: {1} is too large; the most is {2}.", "{0}：{1} 太大；最大为 {2}。"],
  type: ["{0}: an output of type {1} is connected; this input takes {2}.", "{0}：连接了类型 {1} 的输出；此输入需要 {2}。"],
  no_picture: ["Connect a picture to see it here.", "连接图片后会显示在这里。"],
  not_yet: ["The picture appears here after the first run.", "首次运行后图片会显示在这里。"],
  not_found: ["The picture cannot be loaded.", "无法加载图片。"],
  drag: ["Drag the box, or draw a new one.", "拖动方框，或画一个新的。"],
  linked: ["The box comes from connected values.", "方框由连接的数值决定。"],
  mask_wins: ["The painted mask replaces the box.", "涂抹的遮罩取代方框。"],
  drop: ["Drop photos here", "将照片拖放到这里"],
  choose: ["Choose photos", "选择照片"],
  sent: ["Copying {0} photos", "正在复制 {0} 张照片"],
  not_sent: ["{0} could not be copied to ComfyUI.", "无法将 {0} 复制到 ComfyUI。"],
  no_mask: ["whole frame", "整张图"],
  lacking: ["“{0}” is missing; write for example: a photo of {1}.", "缺少“{0}”；例如写：a photo of {1}。"],
  step: ["step {0} of {1}", "第 {0} / {1} 步"],
  finished: ["finished", "完成"],
  stopped: ["stopped", "已停止"],
  failed_at: ["failed", "失败"],
  loaded: ["already learned: loaded {0}", "已学习过：已加载 {0}"],
  left: ["{0} left", "剩余 {0}"],
  all_settings: ["Show all settings", "显示全部设置"],
  fewer_settings: ["Hide settings with their defaults", "隐藏默认设置"],
  box: ["Where the object goes", "物体的位置"],
  references: ["Your photos", "你的照片"],
  training: ["Training", "训练"],
  message: ["Message", "消息"],
}

export const locale = () => String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en")
const isChinese = () => locale().startsWith("zh")

export function text(key, ...values) {
  return WORDS[key][Number(isChinese())].replace(/\{(\d)\}/g, (_, place) => values[place])
}

// What the pack's locales/zh/main.json adds to the page's own words; read when it is needed first.
let chinese
const readChinese = () => (chinese ??= fetchChinese())
async function fetchChinese() {
  const all = await api.getCustomNodesI18n().catch(() => undefined)
  return all?.zh ?? {}
}

const escape = (part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")

// A sentence of a node in the user's language, where there is a translation; else as it is.
export async function translated(sentence) {
  if (!isChinese()) return sentence
  const { inlaySentences = {} } = await readChinese() // English pattern -> Chinese
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
  async afterConfigureGraph() {
    const graph = app.rootGraph ?? app.graph
    if (!isChinese() || !graph.nodes.some((node) => node.properties?.cnr_id === "inlay")) return
    translateGraph(graph, (await readChinese()).inlayTemplates ?? {})
  },
})
