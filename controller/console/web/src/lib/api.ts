// The public JSON API, as a person at a shell would use it; the session's cookie authorises.

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message)
  }
}

/** What the caller does when the session is over: set by the session, so that this file knows nobody above it. */
let onUnauthenticated: () => void = () => {}
export function whenUnauthenticated(callback: () => void): void {
  onUnauthenticated = callback
}

/** Call the API. Returns the decoded answer; throws ApiError with the server's own words. */
export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const init: RequestInit = { method, headers: { Accept: 'application/json' } }
  if (body !== undefined) {
    init.body = JSON.stringify(body)
    init.headers = { Accept: 'application/json', 'Content-Type': 'application/json' }
  }
  let answer: Response
  try {
    answer = await fetch(path, init)
  } catch {
    throw new ApiError(0, 'unreachable', 'The controller cannot be reached. Is it running?')
  }
  return read<T>(answer.status, await answer.text())
}

/** Send a file, telling how far it is (0 to 1). */
export function upload<T>(path: string, file: Blob, progress: (share: number) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest()
    request.open('POST', path)
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total)
    request.onerror = () => reject(new ApiError(0, 'unreachable', 'The upload broke off: send it again.'))
    request.onload = () => {
      try {
        resolve(read<T>(request.status, request.responseText))
      } catch (error) {
        reject(error)
      }
    }
    request.send(file)
  })
}

function read<T>(status: number, text: string): T {
  let value: unknown
  try {
    value = text === '' ? undefined : JSON.parse(text)
  } catch {
    throw new ApiError(status, 'not_json', `The controller answered ${status} with something that is not JSON.`)
  }
  if (status < 400) return value as T
  const told = (value ?? {}) as { error?: string; code?: string }
  if (status === 401) onUnauthenticated()
  throw new ApiError(status, told.code ?? `http_${status}`, told.error ?? `The controller answered ${status}.`)
}

/** Turn values into a query; empty ones are left out. */
export function query(values: Record<string, string | number | boolean | null | undefined | string[]>): string {
  const found = new URLSearchParams()
  for (const [name, value] of Object.entries(values)) {
    if (Array.isArray(value)) for (const one of value) found.append(name, one)
    else if (value !== null && value !== undefined && value !== '' && value !== false) found.set(name, String(value))
  }
  const text = found.toString()
  return text === '' ? '' : `?${text}`
}
