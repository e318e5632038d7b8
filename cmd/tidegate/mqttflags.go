package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"tidegate/forwarder/uplink/simple"
	"tidegate/message"
)

// dialTimeout bounds connecting to a broker, DNS and handshake included.
const dialTimeout = 10 * time.Second

// mqttFlags are the flags that pub and sub have in common, named as mosquitto_pub and mosquitto_sub name them.
type mqttFlags struct {
	host, user, password, client string
	port, qos                    int
	version                      versionFlag
}

func (f *mqttFlags) register(fs *flag.FlagSet) {
	f.version = simple.V311
	fs.StringVar(&f.host, "h", "localhost", "`host` of the broker")
	fs.IntVar(&f.port, "p", 1883, "`port` of the broker")
	fs.IntVar(&f.qos, "q", 0, "quality of service: 0, 1 or 2")
	fs.Var(&f.version, "V", "`version` of MQTT: mqttv311 (311, 3.1.1) or mqttv5 (5)")
	fs.StringVar(&f.user, "u", "", "user `name`")
	fs.StringVar(&f.password, "P", "", "`password`")
	fs.StringVar(&f.client, "i", "", "client `identifier`; a random one when not given")
}

// check reports what the flag package cannot see.
func (f *mqttFlags) check() error {
	switch {
	case f.qos < 0 || f.qos > 2:
		return fmt.Errorf("-q %d: want 0, 1 or 2", f.qos)
	case f.port < 1 || f.port > 65535:
		return fmt.Errorf("-p %d: want 1 to 65535", f.port)
	case f.password != "" && f.user == "" && f.version == simple.V311:
		return errors.New("-P without -u: MQTT 3.1.1 has no password without a user name")
	}
	return nil
}

func (f *mqttFlags) address() string { return net.JoinHostPort(f.host, strconv.Itoa(f.port)) }

// dial connects; the messages that come in go to onMessage.
func (f *mqttFlags) dial(ctx context.Context, onMessage func(message.Message)) (*simple.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return simple.Dial(ctx, simple.Options{
		Address: f.address(), Version: string(f.version), ClientID: f.client, Username: f.user, Password: f.password,
		OnMessage: onMessage,
	})
}

// dialFailed reports why dial failed: 69 for a broker that cannot be reached, 1 for one that refused.
func (f *mqttFlags) dialFailed(std stdio, command string, err error) int {
	var refused *simple.RefusedError
	if errors.As(err, &refused) {
		return std.fail(exitFailed, "%s: broker %s: %v; check -u and -P", command, f.address(), refused)
	}
	return std.fail(exitUnavailable, "%s: cannot reach the broker at %s: %v; check -h and -p, and that it runs",
		command, f.address(), err)
}

// versionFlag reads the ways in which people and mosquitto_pub write a version of MQTT.
type versionFlag string

func (v *versionFlag) String() string { return string(*v) }

// Set implements flag.Value.
func (v *versionFlag) Set(s string) error {
	switch s {
	case "mqttv311", "311", "3.1.1", "4":
		*v = simple.V311
	case "mqttv5", "5", "5.0", "v5":
		*v = simple.V5
	default:
		return errors.New("want mqttv311 or mqttv5")
	}
	return nil
}

// interruptible returns a context that ends on SIGINT or SIGTERM.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}
