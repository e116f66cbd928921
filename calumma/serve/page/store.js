// Conversations, kept in this browser's own database and nowhere else.

const opened = new Promise((resolve, reject) => {
  const request = indexedDB.open("calumma", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function within(mode, work) {
  const transaction = (await opened).transaction("conversations", mode);
  const request = work(transaction.objectStore("conversations"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

export const keep = (conversation) => within("readwrite", (all) => all.put(conversation));
export const drop = (id) => within("readwrite", (all) => all.delete(id));

export async function kept() {
  const all = await within("readonly", (store) => store.getAll());
  return all.sort((a, b) => b.changed - a.changed);
}
