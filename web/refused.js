/** Which of the node's settings make Run fail, and why. No DOM here. */

/** A sentence; "" if they are allowed. settings: values by widget; one that comes over a link is left out. */
export function refused({ start_percent: start, end_percent: end, target_speedup: target }, texts) {
  if (start > end) return texts.startAboveEnd;
  if (target > 0 && target < 1) return texts.targetBelowOne;
  return "";
}
