// Nested facts as plain lines: {"cpu": {"model": "x"}} as "cpu model: x". What is not told is left out.
import { bytes } from './format'

export function lines(facts: Record<string, unknown>, before = ''): [string, string][] {
  return Object.entries(facts).flatMap(([key, value]): [string, string][] => {
    const name = `${before}${key}`.replaceAll('_', ' ')
    if (value === null || value === undefined || value === '') return []
    if (Array.isArray(value)) return value.length === 0 ? [] : [[name, value.map((one) => (typeof one === 'object' ? JSON.stringify(one) : String(one))).join(', ')]]
    if (typeof value === 'object') return lines(value as Record<string, unknown>, `${name} `)
    if (typeof value === 'number' && key.endsWith('_bytes')) return [[name.replace(/ bytes$/, ''), bytes(value)]]
    if (typeof value === 'boolean') return [[name, value ? 'yes' : 'no']]
    return [[name, String(value)]]
  })
}
