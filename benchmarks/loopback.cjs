// Read by Node before a server that can be told a port and no address: it then listens on loopback only.
"use strict";

const { Server } = require("node:net");

const listen = Server.prototype.listen;

Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== "number") throw new Error("loopback.cjs knows listen(port, …) only");
  return listen.call(this, { port, host: "127.0.0.1" }, ...rest.filter((each) => typeof each === "function"));
};
