// Requests to the API of this server, with the key where one is needed.

const KEY = "infini-jax-key";
const BUSY = 5; // how often a request is repeated while another one uses its session

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = null; // a function that asks the user, given what the server said

export function onKeyNeeded(ask) {
  askForKey = ask;
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** A response that is not an error. After a wrong key it asks for another one, and tries again. */
export async function call(path, options = {}) {
  for (let tries = 0; ; tries++) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer. Is it running?", "no_answer");
    }
    if (response.ok) return response;
    const said = await problem(response);
    if (said.code === "session_busy" && tries < BUSY) {
      await new Promise((resolve) => setTimeout(resolve, 300));
      continue;
    }
    if (said.status !== 401) throw said;
    await askForKey(key ? said.message : "");
  }
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

export function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** The objects of a stream of server-sent events. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, "The connection broke before the end.", "broken");
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(0, event.error.message, event.error.code);
      yield event;
    }
  }
}

async function problem(response) {
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.message, error.code);
  } catch {
    return new ApiError(response.status, `The server answered ${response.status}.`, "");
  }
}
