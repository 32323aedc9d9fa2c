// Addresses. The whole state that somebody may want to send to a colleague (which page, which filter) is in the address.

class Router {
  path = $state(location.pathname)
  search = $state(location.search)

  constructor() {
    addEventListener('popstate', () => this.read())
    document.addEventListener('click', (event) => this.follow(event))
  }

  /** The parts of the path: /devices/d-1 is ["devices", "d-1"]. */
  get parts(): string[] {
    return this.path.split('/').filter(Boolean).map(decodeURIComponent)
  }

  get query(): URLSearchParams {
    return new URLSearchParams(this.search)
  }

  go(address: string, replace = false): void {
    if (replace) history.replaceState(null, '', address)
    else history.pushState(null, '', address)
    const moved = location.pathname !== this.path
    this.read()
    if (moved) {
      scrollTo(0, 0)
      // a screen reader is told of the new page by its heading
      requestAnimationFrame(() => document.querySelector<HTMLElement>('main h1')?.focus())
    }
  }

  /** Change some parts of the query and keep the others; empty ones go. */
  set(values: Record<string, string>): void {
    const query = this.query
    for (const [name, value] of Object.entries(values)) {
      if (value === '') query.delete(name)
      else query.set(name, value)
    }
    const text = query.toString()
    this.go(this.path + (text === '' ? '' : `?${text}`), true)
  }

  private read(): void {
    this.path = location.pathname
    this.search = location.search
  }

  private follow(event: MouseEvent): void {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return
    const link = (event.target as Element | null)?.closest?.('a')
    if (!link || link.origin !== location.origin || link.target || link.hasAttribute('download')) return
    if (/^\/(api|metrics|login|logout)(\/|$)/.test(link.pathname) || (link.hash && link.pathname === this.path)) return
    event.preventDefault()
    this.go(link.pathname + link.search)
  }
}

export const router = new Router()
