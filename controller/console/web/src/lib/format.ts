// Numbers and times for people: always with a unit, never with digits that nobody measured.

const LOCALE = undefined // the browser's
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 })

export const NOTHING = '–'

export function count(value: number | null | undefined): string {
  return value == null ? NOTHING : whole.format(value)
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`
}

export function rate(value: number | null | undefined): string {
  return value == null ? NOTHING : `${digits(value)}/s`
}

/** Three significant digits, without an exponent. */
export function digits(value: number): string {
  return new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 }).format(value)
}

/** Milliseconds as µs, ms or s. */
export function ms(value: number | null | undefined): string {
  if (value == null) return NOTHING
  if (value < 1) return `${digits(value * 1000)} µs`
  return value < 1000 ? `${digits(value)} ms` : `${digits(value / 1000)} s`
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return NOTHING
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let step = 0
  while (Math.abs(value) >= 1024 && step < units.length - 1) {
    value /= 1024
    step++
  }
  return `${digits(value)} ${units[step]}`
}

/** A share of 1 as percent. */
export function percent(share: number | null | undefined, places = 1): string {
  return share == null ? NOTHING : `${(share * 100).toFixed(places)} %`
}

export function celsius(value: number | null | undefined): string {
  return value == null ? NOTHING : `${Math.round(value)} °C`
}

/** Seconds as the two largest units. */
export function duration(seconds: number | null | undefined): string {
  if (seconds == null) return NOTHING
  const s = Math.max(0, seconds)
  if (s < 10) return `${digits(s)} s`
  if (s < 60) return `${Math.round(s)} s`
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`
  return `${Math.floor(s / 86_400)} d ${Math.round((s % 86_400) / 3600)} h`
}

export function ago(then: number, now: number): string {
  const seconds = now - then
  if (seconds < -1) return `in ${coarse(-seconds)}`
  return seconds < 2 ? 'now' : `${coarse(seconds)} ago`
}

function coarse(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`
  return `${Math.round(seconds / 86_400)} d`
}

const local = new Intl.DateTimeFormat(LOCALE, { dateStyle: 'medium', timeStyle: 'medium' })

export function localTime(at: number): string {
  return local.format(at * 1000)
}

export function utcTime(at: number): string {
  return `${new Date(at * 1000).toISOString().replace('T', ' ').slice(0, 19)} UTC`
}
