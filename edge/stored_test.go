package edge

import (
	"testing"
)

// storeEnv, when set, lets startBroker keep sessions in a log on disk.
const storeEnv = "TIDEGATE_TEST_STORE"

// TestStored runs tests of delivery, sessions and wills again with sessions that are kept on disk: nothing else may show that.
func TestStored(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"Delivery": TestDelivery, "Retained": TestRetained, "RetainedAndLiveInOrder": TestRetainedAndLiveInOrder,
		"SharedEvenly": TestSharedEvenly, "SharedAllOffline": TestSharedAllOffline, "Resume": TestResume,
		"SessionPresent": TestSessionPresent, "SessionOfAnotherUser": TestSessionOfAnotherUser, "SessionLimit": TestSessionLimit,
		"SessionQueueBound": TestSessionQueueBound, "SessionExpiry": TestSessionExpiry, "TakeOver": TestTakeOver,
		"TakeOverStorm": TestTakeOverStorm, "TakeOverReadsWhatWasSent": TestTakeOverReadsWhatWasSent, "Unsubscribe": TestUnsubscribe,
		"ReceiveMaximumOfClient": TestReceiveMaximumOfClient, "QoS2Repetition": TestQoS2Repetition,
		"QoS2AfterDiskFailure": TestQoS2AfterDiskFailure, "MessageExpiry": TestMessageExpiry, "Rules": TestRules,
		"WillDelay": TestWillDelay, "WillAtTakeOver": TestWillAtTakeOver, "WillOfEvictedSession": TestWillOfEvictedSession,
		"WillWhileDiskIsBehind": TestWillWhileDiskIsBehind, "Deliver": TestDeliver, "StuckHandler": TestStuckHandler,
		"MosquittoClients": TestMosquittoClients,
		"OfflineQueue":     TestConformanceOfflineQueue, "Redelivery": TestConformanceRedelivery, "KeptAndCleared": TestConformanceRetained,
		"SharedExactlyOnce": TestConformance5SharedExactlyOnce, "SharedRefusal": TestConformance5SharedRefusal,
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(storeEnv, "1")
			test(t)
		})
	}
}
