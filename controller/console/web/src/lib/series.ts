// From what the API says of a series to what a chart draws: common times, and gaps where nothing was measured.
import type { Point, SeriesAnswer } from './types'

type Column = 'mean' | 'minimum' | 'maximum' | 'p50' | 'p95' | 'p99'

interface Drawn {
  times: number[]
  lines: { label: string; values: (number | null)[] }[]
  from: number
  to: number
}

/** Draw one column of each series of an answer; `label` names a line by its labels. */
export function drawn(answer: SeriesAnswer, column: Column, label: (labels: Record<string, string>) => string): Drawn {
  return together([answer], [(points) => points[column]], (labels) => label(labels))
}

/** Draw several columns of one answer's only series: p50, p95, p99. */
export function columns(answer: SeriesAnswer, wanted: readonly Column[]): Drawn {
  const picks = wanted.map((column) => (point: Point) => point[column])
  return together(
    wanted.map(() => answer),
    picks,
    (_, at) => wanted[at] ?? '',
  )
}

/** Draw one column of several answers: each answer is a line of its own. */
export function together(
  answers: readonly SeriesAnswer[],
  picks: readonly ((point: Point) => number | null)[],
  label: (labels: Record<string, string>, at: number) => string,
): Drawn {
  const first = answers[0]
  const step = Math.max(1, ...answers.flatMap((answer) => answer.series.map((series) => series.step)))
  const slots = new Set<number>()
  for (const answer of answers) for (const series of answer.series) for (const point of series.points) slots.add(point.start)
  const times = withGaps([...slots].sort((a, b) => a - b), step)
  const lines = answers.flatMap((answer, at) => {
    const pick = picks[at] ?? picks[0]
    return answer.series.map((series) => {
      const values = new Map(series.points.map((point) => [point.start, pick ? pick(point) : null]))
      return { label: label(series.labels, at), values: times.map((time) => values.get(time) ?? null) }
    })
  })
  return { times, lines, from: first?.since ?? 0, to: first?.until ?? 1 }
}

/** A line must not run through a time in which nothing was heard. */
function withGaps(times: readonly number[], step: number): number[] {
  const found: number[] = []
  for (const time of times) {
    const before = found.at(-1)
    if (before !== undefined && time - before > step * 2.5) found.push(before + step)
    found.push(time)
  }
  return found
}
