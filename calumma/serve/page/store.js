// Storage of conversations in the browser's own database (IndexedDB).

const database = new Promise((resolve, reject) => {
  const request = indexedDB.open("calumma", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function transact(mode, work) {
  const transaction = (await database).transaction("conversations", mode);
  const request = work(transaction.objectStore("conversations"));
  transaction.commit(); // at once: a page that is left before the next event would lose it
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

export const saveConversation = (conversation) => transact("readwrite", (all) => all.put(conversation));
export const deleteConversation = (id) => transact("readwrite", (all) => all.delete(id));

export async function listConversations() {
  const all = await transact("readonly", (store) => store.getAll());
  return all.sort((a, b) => b.changed - a.changed);
}
