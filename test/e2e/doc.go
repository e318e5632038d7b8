// Package e2e tests the whole program from outside: it builds the tidegate binary once, starts it with a configuration of its
// own on free ports, and talks to it as devices, cloud brokers, operators and failing disks do. Mosquitto is the cloud, its
// command line clients are devices and consumers; where a test needs to know the moment of every acknowledgement it uses the
// small client of device_test.go. Nothing of the gateway is imported: what holds here holds for the binary.
//
// Start reading in gateway_test.go (the gateway under test), then cloud_test.go and outage_test.go, the main job.
package e2e
