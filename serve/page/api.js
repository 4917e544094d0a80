// What the pages share: elements, requests to this service, and the key that it may ask for. The key stays in this tab's session storage.

const KEY = "intently-key";
const RETRIES = 2;

export const at = (id) => document.getElementById(id);

/** An element with properties and children; text is always set as text, never as markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The answer to a request, asked again when the service has too much to do; throws with what the service says is wrong. */
export async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 503 && attempt < RETRIES) {
      await new Promise((done) => setTimeout(done, 1000 * Number(response.headers.get("Retry-After") ?? 1)));
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    const error = new Error(problem.detail ?? `the service answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
}

export const fetchJson = async (path, options = {}) => (await request(path, options)).json();

/** Says what went wrong, and asks for a key where that is what is missing. */
export function fail(error) {
  if (error.name === "AbortError") return;
  at("failure").textContent = error.message;
  at("failure").hidden = false;
  if (error.status === 401 || error.status === 403) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

/** Lets the key form of a page keep a key and start over with it. */
export function acceptKey(again) {
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = at("key").value.trim();
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    at("key").value = "";
    at("key-form").hidden = true;
    at("failure").hidden = true;
    again();
  });
}
