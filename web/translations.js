// The page's own words, and the sentences of the nodes in other languages.

import { app } from "../../scripts/app.js"

const ENGLISH = {
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
  mask_wins: "Drag the box; a painted mask replaces it.",
  drop: "Drop photos here",
  choose: "Choose photos",
  sent: "Copying {0} photos",
  not_sent: "{0} could not be copied to ComfyUI.",
  no_mask: "whole frame",
  skipped: "Skipped: {0}",
  photos: "{0} photos",
  step: "step {0} of {1}",
  finished: "finished",
  stopped: "stopped",
  failed_at: "failed",
  loaded: "already learned: loaded {0}",
  left: "{0} left",
  all_settings: "Show all settings",
  fewer_settings: "Hide settings with their defaults",
}

const CHINESE = {
  failed: "{0} 已停止",
  invalid: "{0} 无法开始",
  unexpected: "{0} 出现意外错误：{1}。详情见日志。",
  memory: "显存不足。请在“训练主体”的 memory 中选择更小的显卡，或使用更小的图片。",
  required: "{0}：未连接；请连接类型为 {1} 的输出。",
  empty: "{0}：没有值；请输入或选择。",
  choice: "{0}：“{1}”不可用；请另选一个。",
  small: "{0}：{1} 太小；最小为 {2}。",
  big: "{0}：{1} 太大；最大为 {2}。",
  type: "{0}：连接了类型 {1} 的输出；此输入需要 {2}。",
  no_picture: "连接图片后会显示在这里。",
  not_yet: "首次运行后图片会显示在这里。",
  not_found: "无法加载图片。",
  drag: "拖动方框，或画一个新的。",
  linked: "方框由连接的数值决定。",
  mask_wins: "拖动方框；涂抹的遮罩将取代它。",
  drop: "将照片拖放到这里",
  choose: "选择照片",
  sent: "正在复制 {0} 张照片",
  not_sent: "无法将 {0} 复制到 ComfyUI。",
  no_mask: "整张图",
  skipped: "已跳过：{0}",
  photos: "{0} 张照片",
  step: "第 {0} / {1} 步",
  finished: "完成",
  stopped: "已停止",
  failed_at: "失败",
  loaded: "已学习过：已加载 {0}",
  left: "剩余 {0}",
  all_settings: "显示全部设置",
  fewer_settings: "隐藏默认设置",
}

export const locale = () => String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en")
const isChinese = () => locale().startsWith("zh")

export function text(key, ...values) {
  const pattern = (isChinese() && CHINESE[key]) || ENGLISH[key]
  return pattern.replace(/\{(\d)\}/g, (_, place) => values[place])
}

// English pattern -> translated pattern; the same file for all errors, read when the first one comes.
let sentences
async function readSentences() {
  const answer = await fetch(new URL("./sentences.zh.json", import.meta.url)).catch(() => undefined)
  return answer?.ok ? Object.entries(await answer.json()) : []
}

const escape = (part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")

// A sentence of a node in the user's language, where there is a translation; else as it is.
export async function translated(sentence) {
  if (!isChinese()) return sentence
  sentences ??= readSentences()
  for (const [pattern, other] of await sentences) {
    const names = [...pattern.matchAll(/\{([\w.]*)\}/g)].map((match) => match[1])
    const source = pattern.split(/\{[\w.]*\}/).map(escape).join("([\\s\\S]*?)")
    const match = new RegExp(`^${source}$`).exec(sentence.trim())
    if (match) return other.replace(/\{([\w.]*)\}/g, (whole, name) => match[1 + names.indexOf(name)] ?? whole)
  }
  return sentence
}
