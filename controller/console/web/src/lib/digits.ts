// From strokes on a pad to what the sample's images are. The data set was made from 32 × 32 bitmaps of handwriting that
// was scaled to fill its box; each of the 8 × 8 values is the number of set points in a block of 4 × 4 (0 to 16). The
// same is done here. Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.

export type Stroke = { x: number; y: number }[]

const FINE = 32
const THICK = 5 // of the drawn line, in fine points: gives as much ink as the images of the data set have

/** Return `size` × `size` values from 0 to 1, row by row; null when nothing was drawn. */
export function image(strokes: readonly Stroke[], size: number): number[] | null {
  const points = strokes.flat()
  if (points.length === 0) return null
  const [left, right] = [Math.min(...points.map((p) => p.x)), Math.max(...points.map((p) => p.x))]
  const [top, bottom] = [Math.min(...points.map((p) => p.y)), Math.max(...points.map((p) => p.y))]
  const room = FINE - THICK
  const scale = room / Math.max(right - left, bottom - top, 1e-6)
  const place = (p: { x: number; y: number }): [number, number] => [
    FINE / 2 + (p.x - (left + right) / 2) * scale,
    FINE / 2 + (p.y - (top + bottom) / 2) * scale,
  ]
  const fine = Array.from({ length: FINE * FINE }, () => false)
  for (const stroke of strokes) {
    const placed = stroke.map(place)
    for (let at = 0; at < placed.length; at++) {
      const [a, b] = [placed[Math.max(0, at - 1)], placed[at]]
      if (a && b) draw(fine, a, b)
    }
  }
  const block = FINE / size
  return Array.from({ length: size * size }, (_, at) => {
    const [row, column] = [Math.floor(at / size), at % size]
    let set = 0
    for (let y = 0; y < block; y++) for (let x = 0; x < block; x++) if (fine[(row * block + y) * FINE + column * block + x]) set++
    return set / block ** 2
  })
}

/** Set every point that lies within half a line's thickness of the way from a to b. */
function draw(fine: boolean[], [ax, ay]: [number, number], [bx, by]: [number, number]): void {
  const length = (bx - ax) ** 2 + (by - ay) ** 2
  for (let y = 0; y < FINE; y++) {
    for (let x = 0; x < FINE; x++) {
      const [px, py] = [x + 0.5, y + 0.5]
      const along = length === 0 ? 0 : Math.max(0, Math.min(1, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length))
      const distance = Math.hypot(px - ax - along * (bx - ax), py - ay - along * (by - ay))
      if (distance <= THICK / 2) fine[y * FINE + x] = true
    }
  }
}
