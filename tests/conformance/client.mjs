// What a program in another language sees of a node. Each subcommand prints one JSON value; credentials come from the
// node's own nats.json, whose path is the first argument.

import { readFileSync } from "node:fs";
import { connect } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";
import { Svcm } from "@nats-io/services";

const [contextPath, command, ...args] = process.argv.slice(2);
const context = JSON.parse(readFileSync(contextPath, "utf8"));
const nc = await connect({ servers: context.url, user: context.user, pass: context.password });

// The first version's message, and what comes on its response channel up to the empty message.
async function firstVersion(channel, message) {
  const subscription = nc.subscribe(`aether.v1.default.rsp.${channel}`);
  await nc.flush();
  nc.publish("aether.v1.default.rpc", message);
  const chunks = [];
  for await (const m of subscription) {
    if (m.data.length === 0) break;
    chunks.push(m.json());
  }
  return chunks;
}

// A request whose reply is a stream that an empty message ends.
async function ask(subject, body) {
  const chunks = [];
  for await (const m of await nc.requestMany(subject, body, { strategy: "sentinel", maxWait: 120_000 })) {
    if (m.data.length > 0) {
      chunks.push({ node: m.headers?.get("Aether-Node"), error: m.headers?.get("Nats-Service-Error-Code"), ...m.json() });
    }
  }
  return chunks;
}

// Every event of a node, by an ordered consumer from the first one on.
async function events(stream, count) {
  const consumer = await jetstream(nc).consumers.get(stream);
  const found = [];
  for await (const m of await consumer.consume()) {
    found.push({ seq: m.seq, subject: m.subject, id: m.headers?.get("Nats-Msg-Id"), event: m.json() });
    if (found.length === Number(count)) break;
  }
  return found;
}

// The node's components, as the NATS services API has them.
async function services() {
  const client = new Svcm(nc).client();
  const collect = async (answers) => {
    const found = [];
    for await (const answer of await answers) found.push(answer);
    return found.sort((a, b) => (a.name < b.name ? -1 : 1));
  };
  return {
    ping: await collect(client.ping()),
    info: await collect(client.info()),
    stats: await collect(client.stats("aether-compute")),
  };
}

const commands = { "first-version": firstVersion, ask, events, services };
console.log(JSON.stringify(await commands[command](...args)));
await nc.close();
