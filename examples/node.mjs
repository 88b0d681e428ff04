// Any language, here Node 18 or newer, without a package: enqueue a task, poll its status, cancel it.
//
//     pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
//     node examples/node.mjs submit text-classification "I love this queue" '{"top_k": 2}'
//     node examples/node.mjs wait ID
//     node examples/node.mjs cancel ID
//
// docs/any-language.md explains what is written to Redis and read from it. With a Redis package of your own, only
// `enqueue`, `status` and `cancel` are of interest.
import { randomUUID } from "node:crypto";
import net from "node:net";
import { pathToFileURL } from "node:url";

const RECORD_TTL_S = 7 * 86400;

/** Queues a task: one object, pushed onto the list named after its pipeline. Returns its id. */
export async function enqueue(redis, pipeline, inputs, { params = {}, id = randomUUID(), ...wishes } = {}) {
  const task = JSON.stringify({ id, pipeline, inputs, params, ...wishes });
  const record = { status: "QUEUED", result: null, children: [], task_id: id };
  record.pipeq = { pipeline, submitted_at: Date.now() / 1000, expires_at: wishes.expires_at };
  const replies = await Promise.all([
    redis.command("MULTI"),
    // Optional: with it, the task reads as queued at once, and can be cancelled before a worker has it.
    redis.command("SET", `celery-task-meta-${id}`, JSON.stringify(record), "NX", "EX", RECORD_TTL_S),
    redis.command("LPUSH", pipeline, task),
    redis.command("EXEC"),
  ]);
  const failed = replies[3].find((one) => one instanceof Error);
  if (failed) throw failed;
  return id;
}

/** The status of a task: its `state`, and `result`, `result_uri` or `error`. */
export async function status(redis, id) {
  // The mark first: a task that ends in between is then seen to have ended.
  const mark = parse((await redis.command("HMGET", "pipeq:running", id))[0]);
  const record = parse(await redis.command("GET", `celery-task-meta-${id}`));
  const { result_uri, error, expires_at } = record?.pipeq ?? {};
  switch (record?.status) {
    case "SUCCESS":
      return { state: "succeeded", result: record.result, result_uri };
    case "FAILURE":
      return { state: "failed", error: error ?? { code: "internal", message: String(record.result?.exc_message) } };
    case "REVOKED":
      return { state: record.result.exc_message[0] === "expired" ? "expired" : "cancelled" };
  }
  if (mark?.worker || record?.status === "STARTED") return { state: "running", progress: mark?.progress };
  if (record === null) return { state: "unknown" };
  if (record.status === "RETRY") return { state: "retrying", error };
  return { state: expires_at < Date.now() / 1000 ? "expired" : "queued" };
}

/** Polls until a task has ended. (Its record is also published on the channel of its name: SUBSCRIBE in place of this.) */
export async function wait(redis, id, timeoutMs = 60_000) {
  const until = Date.now() + timeoutMs;
  for (let pauseMs = 20; ; pauseMs = Math.min(pauseMs * 1.5, 1000)) {
    const found = await status(redis, id);
    if (["succeeded", "failed", "cancelled", "expired"].includes(found.state)) return found;
    if (Date.now() > until) throw new Error(`${id} is ${found.state} after ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

/** Cancels a task, unless it has ended: a worker drops it before it begins, and stops it within a second if it runs. WATCH
 * belongs to a connection, so nothing else may use this one meanwhile. */
export async function cancel(redis, id) {
  const key = `celery-task-meta-${id}`;
  for (;;) {
    await redis.command("WATCH", key);
    const before = parse(await redis.command("GET", key));
    if (["SUCCESS", "FAILURE", "REVOKED"].includes(before?.status)) {
      await redis.command("UNWATCH");
      return status(redis, id);
    }
    const why = { exc_type: "TaskRevokedError", exc_message: ["cancelled"], exc_module: "celery.exceptions" };
    const record = { ...before, status: "REVOKED", result: why, children: [], task_id: id };
    record.date_done = new Date().toISOString();
    record.pipeq = { ...before?.pipeq, finished_at: Date.now() / 1000 };
    await redis.command("MULTI");
    await redis.command("SET", key, JSON.stringify(record), "EX", RECORD_TTL_S);
    await redis.command("PUBLISH", key, JSON.stringify(record));
    if ((await redis.command("EXEC")) !== null) return status(redis, id); // null: a worker was faster, so look again
  }
}

const parse = (text) => (text === null ? null : JSON.parse(text));

/** One connection that speaks Redis' protocol: commands go out in order, and each gets its reply. */
export class Redis {
  #waiting = [];
  #data = Buffer.alloc(0);

  constructor(url) {
    const { hostname, port, username, password, pathname } = new URL(url);
    this.socket = net.connect(Number(port || 6379), hostname || "localhost");
    this.socket.on("data", (data) => this.#read(data));
    this.socket.on("error", (error) => this.#end(error));
    this.socket.on("close", () => this.#end(new Error("the connection is closed")));
    if (password) this.command("AUTH", ...(username ? [username] : []), decodeURIComponent(password)).catch(() => {});
    if (pathname.length > 1) this.command("SELECT", pathname.slice(1)).catch(() => {});
  }

  command(...words) {
    const parts = words.map((word) => Buffer.from(String(word)));
    const pieces = parts.flatMap((part) => [Buffer.from(`$${part.length}\r\n`), part, Buffer.from("\r\n")]);
    this.socket.write(Buffer.concat([Buffer.from(`*${parts.length}\r\n`), ...pieces]));
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  close() {
    this.socket.end();
  }

  #end(error) {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  #read(data) {
    this.#data = Buffer.concat([this.#data, data]);
    for (let found; this.#waiting.length && (found = reply(this.#data, 0)); ) {
      this.#data = this.#data.subarray(found.end);
      const { resolve, reject } = this.#waiting.shift();
      found.value instanceof Error ? reject(found.value) : resolve(found.value);
    }
  }
}

/** One reply and where it ends; null while it is not complete. */
function reply(data, at) {
  const stop = data.indexOf("\r\n", at);
  if (stop < 0) return null;
  const kind = String.fromCharCode(data[at]);
  const line = data.toString("utf8", at + 1, stop);
  const end = stop + 2;
  if (kind === "+") return { value: line, end };
  if (kind === "-") return { value: new Error(line), end };
  if (kind === ":") return { value: Number(line), end };
  const length = Number(line);
  if (length < 0) return { value: null, end };
  if (kind === "$") {
    return data.length < end + length + 2 ? null : { value: data.toString("utf8", end, end + length), end: end + length + 2 };
  }
  const values = [];
  let next = end;
  while (values.length < length) {
    const one = reply(data, next);
    if (one === null) return null;
    values.push(one.value);
    next = one.end;
  }
  return { value: values, end: next };
}

async function main([what, first, inputs, params]) {
  const redis = new Redis(process.env.PIPEQ_REDIS_URL ?? "redis://localhost:6379/0");
  try {
    if (what === "submit") {
      const id = await enqueue(redis, first, inputs, { params: JSON.parse(params ?? "{}") });
      console.log(id);
      return await wait(redis, id);
    }
    if (what === "wait") return await wait(redis, first);
    if (what === "cancel") return await cancel(redis, first);
    throw new Error("usage: node.mjs submit PIPELINE TEXT [PARAMS] | wait ID | cancel ID");
  } finally {
    redis.close();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  main(process.argv.slice(2)).then(
    (found) => console.log(JSON.stringify(found)),
    (error) => {
      console.error(error.message);
      process.exitCode = 1;
    },
  );
}
