// Rank for a user, tell what was shown and clicked, record the click, rank again.
//
//   npm ci && node rank.mjs localhost:50051 ann tea coffee cocoa
//
// Item ids that are numbers go into `ids` in place of `keys`, as the model's schema says (`item.id_type`), and stay text in JavaScript,
// whose numbers end at 2^53. Request columns that it declares (a bid for each item, say) come from the environment: COLUMNS='{"bid": [1, 0.5, 2]}'.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const files = ["ranker", "events", "feedback"].map((name) => `kunlun/v1/${name}.proto`);
const definition = protoLoader.loadSync(files, { includeDirs: [protos], keepCase: true, longs: String, enums: String });
const { kunlun } = grpc.loadPackageDefinition(definition);

const [server, user, ...items] = process.argv.slice(2);
if (items.length === 0) {
  console.error("usage: node rank.mjs HOST:PORT USER ITEM…");
  process.exit(2);
}

// One client for each service; they share the connections of the channel's name. Every pod of a headless Service gets its share.
const options = { "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }) };
const credentials = grpc.credentials.createInsecure();
const clients = {
  ranker: new kunlun.v1.Ranker(server, credentials, options),
  events: new kunlun.v1.Events(server, credentials, options),
  feedback: new kunlun.v1.Feedback(server, credentials, options),
};

/** One call as a promise. The deadline is the server's budget; `kunlun-user` lets a balancer send a user's calls to one replica. */
function call(client, method, request, timeoutMs = 5000) {
  const metadata = new grpc.Metadata();
  metadata.set("kunlun-user", user);
  return new Promise((resolve, reject) => {
    const done = (error, reply) => (error ? reject(error) : resolve(reply));
    client[method](request, metadata, { deadline: Date.now() + timeoutMs }, done);
  });
}

const numeric = items.every((item) => /^[0-9]+$/.test(item));
const ids = (some) => (numeric ? { ids: some } : { keys: some });
const listed = (reply) => (numeric ? reply.items.ids : reply.items.keys);
const columns = Object.entries(JSON.parse(process.env.COLUMNS ?? "{}"));
const features = columns.map(([name, values]) => ({ name, float_values: { values } }));
const request = { user_id: user, candidates: ids(items), candidate_features: features };

const first = await call(clients.ranker, "Rank", request);
const best = listed(first)[0];
const shown = listed(first).map((_, position) => position).slice(0, 2); // those that fit on this page
await call(clients.feedback, "ReportOutcomes", {
  outcomes: [{ receipt: first.receipt, shown, labels: [{ position: 0, task: first.scores[0].task }] }],
});
const event = { event_id: `${first.request_id}:0`, user_id: user, type: "click", item: ids([best]) };
const recorded = await call(clients.events, "RecordEvents", { events: [event] });
const second = await call(clients.ranker, "Rank", { ...request, min_event_token: recorded.event_token });

console.log(
  JSON.stringify({
    before: listed(first),
    clicked: best,
    after: listed(second),
    rung: second.rung,
    history_length: second.history_length,
    model: `${second.model} ${second.version}`,
  }),
);
for (const client of Object.values(clients)) client.close();
